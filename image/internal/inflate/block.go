package inflate

import "encoding/binary"

// block reads what begins a block (RFC 1951 3.2.3).
func (z *Reader) block() error {
	if z.final {
		z.final = false
		return z.trailer()
	}
	z.final = z.bits(1) == 1
	switch z.bits(2) {
	case 0:
		z.unread()
		z.acc, z.n = 0, 0 // the rest of a byte is not used
		length := z.bits(16)
		if z.bits(16) != length^0xffff {
			return errStored
		}
		z.unread()
		z.stored = int(length)
		z.step = (*Reader).copyStored
		return nil
	case 1:
		if !z.fixed {
			build(z.lit[:], litBits, fixedLit, litSymbols)
			build(z.dist[:], distBits, fixedDist, distSymbols)
			z.fixed = true
		}
	case 2:
		z.fixed = false
		if !z.readCodes() {
			return errCode
		}
	default:
		return errBlock
	}
	z.step = (*Reader).symbols
	return nil
}

func (z *Reader) copyStored() error {
	if z.pos == z.end {
		z.more()
	}
	n := copy(z.window[z.out:], z.in[z.pos:min(z.pos+z.stored, z.end)])
	z.pos += n
	z.out += n
	if z.stored -= n; z.stored == 0 {
		z.step = (*Reader).block
	}
	return nil
}

// readCodes reads a block's codes (RFC 1951 3.2.7) and tells whether they are possible.
func (z *Reader) readCodes() bool {
	numLit, numDist, numOrder := int(z.bits(5))+257, int(z.bits(5))+1, int(z.bits(4))+4
	if numLit > 286 || numDist > 30 {
		return false
	}
	var order [19]byte
	for i := range numOrder {
		order["\x10\x11\x12\x00\x08\x07\x09\x06\x0a\x05\x0b\x04\x0c\x03\x0d\x02\x0e\x01\x0f"[i]] = byte(z.bits(3))
	}
	var table [1 << 7]uint32
	if !build(table[:], 7, order[:], orderSymbols) {
		return false
	}
	var lengths [286 + 30]byte
	for i := 0; i < numLit+numDist; {
		e := table[z.peek()%uint64(len(table))]
		if e == 0 {
			return false
		}
		z.bits(e & entryBits)
		length, repeat := byte(e>>entryValue), 1
		switch length {
		case 16:
			if i == 0 {
				return false
			}
			length, repeat = lengths[i-1], 3+int(z.bits(2))
		case 17:
			length, repeat = 0, 3+int(z.bits(3))
		case 18:
			length, repeat = 0, 11+int(z.bits(7))
		}
		if repeat > numLit+numDist-i {
			return false
		}
		for range repeat {
			lengths[i] = length
			i++
		}
	}
	return build(z.lit[:], litBits, lengths[:numLit], litSymbols) &&
		build(z.dist[:], distBits, lengths[numLit:numLit+numDist], distSymbols)
}

// symbols decodes a block until it ends or the window is full.
func (z *Reader) symbols() error {
	if z.end-z.pos < inputMargin {
		z.more()
	}
	var (
		acc, n   = z.acc, z.n
		pos, out = z.pos, z.out
		last     = z.end - inputMargin
		err      error
	)
	for pos <= last && out <= windowEnd {
		acc |= binary.LittleEndian.Uint64(z.in[pos:pos+8]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56

		// 56 bits are enough for three literals that need no link, and a fourth or a length with one.
		e := z.lit[acc%(1<<litBits)]
		for i := 0; i < 3 && e&entryLiteral != 0; i++ {
			acc >>= e & entryBits
			n -= uint64(e & entryBits)
			z.window[out] = byte(e >> entryValue)
			out++
			e = z.lit[acc%(1<<litBits)]
		}
		if e&entryLink != 0 {
			e = z.lit[uint64(e>>entryValue)+acc>>litBits%(1<<(maxCode-litBits))]
		}
		before := acc
		acc >>= e & entryBits
		n -= uint64(e & entryBits)
		if e&entryLiteral != 0 {
			z.window[out] = byte(e >> entryValue)
			out++
			continue
		}
		if e&entryCopy == 0 {
			if e&entryEnd != 0 {
				z.step = (*Reader).block
			} else {
				err = errSymbol
			}
			break
		}
		length := value(e, before)

		acc |= binary.LittleEndian.Uint64(z.in[pos:pos+8]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		e = z.dist[acc%(1<<distBits)]
		if e&entryLink != 0 {
			e = z.dist[uint64(e>>entryValue)+acc>>distBits%(1<<(maxCode-distBits))]
		}
		if e&entryCopy == 0 {
			err = errSymbol
			break
		}
		distance := value(e, acc)
		acc >>= e & entryBits
		n -= uint64(e & entryBits)
		if distance > out-z.start {
			err = errDistance
			break
		}

		// What is written behind the match's end the next symbols write over. A match that is nearer than a load is wide
		// repeats itself: each store gives as many right bytes as it is far, and then it can be taken from twice as far.
		end := out + length
		from := out - distance
		for distance < 8 {
			binary.LittleEndian.PutUint64(z.window[out:out+8], binary.LittleEndian.Uint64(z.window[from:from+8]))
			out += distance
			distance *= 2
		}
		if length <= maxShort {
			for out < end {
				binary.LittleEndian.PutUint64(z.window[out:out+8], binary.LittleEndian.Uint64(z.window[from:from+8]))
				out += 8
				from += 8
			}
		}
		for out < end {
			out += copy(z.window[out:end], z.window[from:out])
		}
		out = end
	}
	z.acc, z.n, z.pos, z.out = acc, n, pos, out
	return err
}
