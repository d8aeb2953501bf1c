// Package inflate reads gzip (RFC 1952) and the deflate data in it (RFC 1951) about twice as fast as other Go readers, because
// that is most of what a pull costs. Bytes go from the source into one large buffer, from there by 64 bits at a time through tables
// that answer a whole symbol with one look, and into a window that is also the history that matches copy from.
//
// The input is hostile: work is bounded by the input's length, memory by the size of Reader, and every index is checked.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

const (
	inputSize   = 128 << 10
	historySize = 32 << 10  // how far back a match can reach
	windowSize  = 256 << 10 // with the history
	maxMatch    = 258
	maxShort    = 40 // bytes of a match that are copied faster without a call

	// Between two looks at how much is left, decoding takes at most 14 bytes of input, of which it loads eight at a time, and
	// gives four literals and a match, which is written by eight bytes at a time.
	inputMargin  = 32
	windowMargin = 4 + maxMatch + 8
	windowEnd    = windowSize - windowMargin

	// What is put behind the input's end, so that decoding need not look for the end at every symbol.
	padding = 2 * inputMargin

	maxName = 512 // bytes of a file's name or comment with the zero behind it, as compress/gzip has it
)

var (
	errHeader   = errors.New("gzip: damaged header")
	errTrailing = errors.New("gzip: data after the end")
	errChecksum = errors.New("gzip: wrong checksum")
	errBlock    = errors.New("gzip: damaged data: unknown type of block")
	errStored   = errors.New("gzip: damaged data: wrong length of a stored block")
	errCode     = errors.New("gzip: damaged data: impossible code")
	errSymbol   = errors.New("gzip: damaged data: symbol without meaning")
	errDistance = errors.New("gzip: damaged data: match before the beginning")
)

// Reader gives the content of a gzip file of one or more members.
type Reader struct {
	source  io.Reader
	readErr error // how source ended
	step    func(*Reader) error
	err     error // how the content ends

	// The input: in[pos:end] is still to be read, but for the bits that have been taken into acc. The last padded bytes are
	// not the source's.
	pos, end, padded int
	acc              uint64 // the next bits, the first one lowest; above the first n of them is nothing or what comes next
	n                uint64

	// The output: window[start:out] is this member's history, window[given:out] not read yet, window[summed:out] not in crc.
	start, given, summed, out int
	crc, size                 uint32

	members int
	final   bool // this block is the member's last
	fixed   bool // lit and dist are those of RFC 1951 3.2.6
	stored  int  // how much of a stored block is left

	lit    [1<<litBits + maxLitLinks<<(maxCode-litBits)]uint32
	dist   [1<<distBits + maxDistLinks<<(maxCode-distBits)]uint32
	in     [inputSize + padding]byte
	window [windowSize]byte
}

// NewReader returns a Reader of r's content. It reads r to its end and more of it at a time than it needs.
// Reading fails with io.ErrUnexpectedEOF where r ends too early, and where anything but a member follows a member.
// What has been read is to be trusted only after io.EOF: checksum and length come last.
func NewReader(r io.Reader) *Reader {
	return &Reader{source: r, step: (*Reader).header}
}

func (z *Reader) Read(p []byte) (int, error) {
	for z.given == z.out {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.fill()
	}
	n := copy(p, z.window[z.given:z.out])
	z.given += n
	return n, nil
}

// fill fills the window, all of which has been read, as far as the content goes. In front of an error it gives nothing.
func (z *Reader) fill() error {
	if slide := z.out - historySize; slide > 0 {
		copy(z.window[:], z.window[slide:z.out])
		z.start = max(0, z.start-slide)
		z.given, z.summed, z.out = historySize, historySize, historySize
	}
	for z.out <= windowEnd {
		err := z.step(z)
		if z.consumed() > z.end-z.padded { // whatever it found is no more than padding
			err = io.ErrUnexpectedEOF
		}
		if err != nil && z.readErr != nil && z.readErr != io.EOF { // which explains what is wrong with the data
			err = z.readErr
		}
		if err != nil {
			if err != io.EOF {
				z.out = z.given
			}
			return err
		}
	}
	z.sum()
	return nil
}

// sum takes what is new in the window into checksum and length.
func (z *Reader) sum() {
	z.crc = crc32.Update(z.crc, crc32.IEEETable, z.window[z.summed:z.out])
	z.size += uint32(z.out - z.summed)
	z.summed = z.out
}

// header reads what begins a member (RFC 1952 2.3), or finds the end.
func (z *Reader) header() error {
	if z.end-z.pos < inputMargin {
		z.more()
	}
	if z.consumed() == z.end-z.padded && (z.members > 0 || z.readErr != io.EOF) {
		return z.readErr
	}
	z.crc = 0
	if z.byte() != 0x1f || z.byte() != 0x8b {
		if z.members > 0 {
			return errTrailing
		}
		return errHeader
	}
	method, flags := z.byte(), z.byte()
	if method != 8 || flags&0xe0 != 0 {
		return errHeader
	}
	for range 6 { // time, extra flags, operating system
		z.byte()
	}
	if flags&4 != 0 {
		length := int(z.byte())
		length |= int(z.byte()) << 8
		for range length {
			z.byte()
		}
	}
	for _, flag := range []byte{8, 16} { // name, comment
		if flags&flag == 0 {
			continue
		}
		for n := 1; z.byte() != 0; n++ {
			if n == maxName {
				return errHeader
			}
		}
	}
	if flags&2 != 0 {
		if sum := z.crc & 0xffff; uint32(z.bits(16)) != sum {
			return errHeader
		}
	}
	z.members++
	z.start, z.crc, z.size = z.out, 0, 0
	z.step = (*Reader).block
	return nil
}

// byte reads one byte of the header, which may have a checksum.
func (z *Reader) byte() byte {
	b := [1]byte{byte(z.bits(8))}
	z.crc = crc32.Update(z.crc, crc32.IEEETable, b[:])
	return b[0]
}

// trailer checks what ends a member.
func (z *Reader) trailer() error {
	z.sum()
	z.unread()
	z.acc, z.n = 0, 0
	if crc, size := uint32(z.bits(32)), uint32(z.bits(32)); crc != z.crc || size != z.size {
		return errChecksum
	}
	z.step = (*Reader).header
	return nil
}

// bits takes up to 32 bits of the input.
func (z *Reader) bits(n uint32) uint64 {
	v := z.peek() & (1<<n - 1)
	z.acc >>= n
	z.n -= uint64(n)
	return v
}

// peek returns the next bits of the input, at least 32.
func (z *Reader) peek() uint64 {
	if z.n < 32 {
		if z.end-z.pos < inputMargin {
			z.more()
		}
		z.acc |= binary.LittleEndian.Uint64(z.in[z.pos:]) << z.n
		z.pos += int((63 - z.n) >> 3)
		z.n |= 56
	}
	return z.acc
}

// unread gives back the whole bytes that are in acc.
func (z *Reader) unread() {
	z.pos = z.consumed()
	z.n %= 8
	z.acc &= 1<<z.n - 1
}

// consumed is where in the input the first byte is of which no bit has been used.
func (z *Reader) consumed() int { return z.pos - int(z.n/8) }

// more reads input until there is enough to decode without looking for its end. What the source has not is padding.
func (z *Reader) more() {
	z.unread()
	z.end = copy(z.in[:], z.in[z.pos:z.end])
	z.pos = 0
	for z.end < inputMargin && z.readErr == nil {
		var n int
		n, z.readErr = z.source.Read(z.in[z.end:inputSize])
		z.end += n
	}
	if z.end < inputMargin {
		clear(z.in[z.end : z.end+padding])
		z.end += padding
		z.padded += padding
	}
}
