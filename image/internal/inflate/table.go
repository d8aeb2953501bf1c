package inflate

import (
	"bytes"
	"math/bits"
	"slices"
)

// The tables that decode. The first 1<<litBits (distBits) entries are looked up by the next bits of the input; where a code
// is longer, they link to as many more entries as the rest of the longest code can be, which are looked up by the bits behind.
// Each linked part has two codes at least, which bounds their number.
const (
	maxCode      = 15
	litBits      = 11
	distBits     = 8
	maxLitLinks  = 288 / 2
	maxDistLinks = 32 / 2
)

// An entry has, from the lowest bit: how many bits to take, the code and the extra bits behind it; what it is; how many
// of these bits are the code; the literal, the base of length or distance, or where it links to. 0 is no code.
const (
	entryBits    = 1<<6 - 1
	entryLiteral = 1 << 6
	entryCopy    = 1 << 7 // length or distance
	entryEnd     = 1 << 8
	entryLink    = 1 << 9
	entryCode    = 10
	entryValue   = 16
)

// value is an entry's length or distance with the extra bits.
func value(e uint32, acc uint64) int {
	return int(uint64(e>>entryValue) + acc&(1<<(e&entryBits)-1)>>(e>>entryCode%(1<<(entryValue-entryCode))&63))
}

// The entries of the symbols, but for the bits of their codes (RFC 1951 3.2.5), and the fixed codes' lengths (3.2.6), among
// which are symbols without meaning.
var (
	litSymbols = slices.Concat(makeSymbols(256, func(i uint32) uint32 { return i<<entryValue | entryLiteral }),
		[]uint32{entryEnd}, makeCopies(28, 3, 4), []uint32{maxMatch<<entryValue | entryCopy, 0, 0})
	distSymbols  = append(makeCopies(30, 1, 2), 0, 0)
	orderSymbols = makeSymbols(19, func(i uint32) uint32 { return i << entryValue })

	fixedLit = slices.Concat(bytes.Repeat([]byte{8}, 144), bytes.Repeat([]byte{9}, 112),
		bytes.Repeat([]byte{7}, 24), bytes.Repeat([]byte{8}, 8))
	fixedDist = bytes.Repeat([]byte{5}, 32)
)

func makeSymbols(count uint32, entry func(i uint32) uint32) (entries []uint32) {
	for i := range count {
		entries = append(entries, entry(i))
	}
	return entries
}

// makeCopies returns the entries of lengths or distances from base. All groups but the second have an extra bit more than
// the one before.
func makeCopies(count, base, group uint32) []uint32 {
	return makeSymbols(count, func(i uint32) uint32 {
		extra := max(i/group, 1) - 1
		first := base
		base += 1 << extra
		return first<<entryValue | entryCopy | extra
	})
}

// build makes a table for the Huffman code with these lengths (RFC 1951 3.2.2) and tells whether there is one: no bits may be
// without a symbol or have two, but as in zlib a code may have no symbol, or one whose code is a single bit.
func build(table []uint32, tableBits int, lengths []byte, symbols []uint32) bool {
	var count, next [maxCode + 1]int
	for _, length := range lengths {
		count[length]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	code := 0
	for length := 1; length <= maxCode; length++ {
		code = (code + count[length-1]) << 1
		next[length] = code
	}
	if code+count[maxCode] != 1<<maxCode && used != 0 && (used != 1 || count[1] != 1) {
		return false
	}
	clear(table[:1<<tableBits])
	free := 1 << tableBits
	for symbol, length := range lengths {
		if length == 0 {
			continue
		}
		// The input has a code's first bit lowest.
		code := int(bits.Reverse16(uint16(next[length])) >> (16 - length))
		next[length]++
		entry := symbols[symbol] + uint32(length) + uint32(length)<<entryCode
		part, step := table[:1<<tableBits], 1<<length
		if int(length) > tableBits {
			link := &table[code%len(part)]
			if *link == 0 {
				*link = uint32(free)<<entryValue | entryLink
				free += 1 << (maxCode - tableBits)
			}
			part = table[*link>>entryValue:][:1<<(maxCode-tableBits)]
			code, step = code>>tableBits, 1<<(int(length)-tableBits)
		}
		for ; code < len(part); code += step {
			part[code] = entry
		}
	}
	return true
}
