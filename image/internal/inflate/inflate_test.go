package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	gobuild "go/build"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	klauspost "github.com/klauspost/compress/gzip"
)

// sample is content of n bytes with text, matches near and far, runs and noise.
func sample(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	var data []byte
	for len(data) < n {
		switch random.IntN(5) {
		case 0:
			data = append(data, "func (z *Reader) Read(p []byte) (int, error) {\n"[random.IntN(40):]...)
		case 1:
			data = append(data, bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN(1000))...)
		case 2:
			data = append(data, bytes.Repeat([]byte("abcdefghijk")[:1+random.IntN(11)], random.IntN(40))...)
		case 3:
			for range random.IntN(300) {
				data = append(data, byte(random.Uint32()))
			}
		case 4:
			if back := min(len(data), 1+random.IntN(historySize)); back > 0 {
				from := data[len(data)-back:]
				data = append(data, from[:min(len(from), random.IntN(400))]...)
			}
		}
	}
	return data[:n]
}

func compressed(t testing.TB, data []byte, level int) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(data []byte) ([]byte, error) { return io.ReadAll(NewReader(bytes.NewReader(data))) }

func TestLevels(t *testing.T) {
	for _, size := range []int{0, 1, 100, historySize, windowSize, 3*windowSize + 17} {
		data := sample(size)
		for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
			got, err := read(compressed(t, data, level))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, level %d: %d bytes, %v", size, level, len(got), err)
			}
		}
	}
}

func TestPieces(t *testing.T) {
	data := sample(2*windowSize + 5)
	file := compressed(t, data, flate.DefaultCompression)
	file = append(file, compressed(t, data[:70000], flate.NoCompression)...)
	want := append(data, data[:70000]...)
	for name, source := range map[string]io.Reader{
		"bytes":     iotest.OneByteReader(bytes.NewReader(file)),
		"halves":    iotest.HalfReader(bytes.NewReader(file)),
		"early EOF": iotest.DataErrReader(bytes.NewReader(file)),
	} {
		if err := iotest.TestReader(NewReader(source), want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, err := io.ReadAll(iotest.OneByteReader(NewReader(bytes.NewReader(file))))
	if err != nil || !bytes.Equal(got, want) {
		t.Error(err)
	}
}

// TestReadError has the source fail everywhere: its own error comes through, also where the file is whole but no end is seen.
func TestReadError(t *testing.T) {
	file := compressed(t, sample(500), flate.DefaultCompression)
	broken := errors.New("the cable is broken")
	for n := range len(file) + 1 {
		source := io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken))
		if _, err := io.ReadAll(NewReader(source)); err != broken {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	// It matters more than what is found in the data.
	source := io.MultiReader(bytes.NewReader(append(file, "x"...)), iotest.ErrReader(broken))
	if _, err := io.ReadAll(NewReader(source)); err != broken {
		t.Error(err)
	}
}

func TestTruncated(t *testing.T) {
	data := sample(5000)
	for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
		file := compressed(t, data, level)
		for n := range len(file) {
			if got, err := read(file[:n]); err != io.ErrUnexpectedEOF || !bytes.HasPrefix(data, got) {
				t.Fatalf("level %d, %d of %d bytes: %d bytes, %v", level, n, len(file), len(got), err)
			}
		}
	}
}

// bitWriter writes what compress/flate would not.
type bitWriter struct {
	data []byte
	n    int
}

// bits writes values, the lowest bit first: value, length, value, length …
func (w *bitWriter) bits(pairs ...int) *bitWriter {
	for pair := range slices.Chunk(pairs, 2) {
		for i := range pair[1] {
			if w.n%8 == 0 {
				w.data = append(w.data, 0)
			}
			w.data[w.n/8] |= byte(pair[0]>>i&1) << (w.n % 8)
			w.n++
		}
	}
	return w
}

// codes writes Huffman codes, the highest bit first, as texts of 0 and 1.
func (w *bitWriter) codes(codes string) *bitWriter {
	for _, c := range codes {
		if c != ' ' {
			w.bits(int(c-'0'), 1)
		}
	}
	return w
}

// lengths writes the head of a last dynamic block with these lengths of codes, each in a code of 4 bits.
func (w *bitWriter) lengths(lit, dist []int) *bitWriter {
	w.bits(1, 1, 2, 2, len(lit)-257, 5, len(dist)-1, 5, 15, 4, 0, 3, 0, 3, 0, 3) // no 16, 17, 18
	for range 16 {
		w.bits(4, 3)
	}
	for _, length := range append(lit, dist...) {
		w.codes(fmt.Sprintf("%04b", length))
	}
	return w
}

// alphabet gives n lengths: those named in pairs of symbol and length, else 0.
func alphabet(n int, pairs ...int) []int {
	lengths := make([]int, n)
	for pair := range slices.Chunk(pairs, 2) {
		lengths[pair[0]] = pair[1]
	}
	return lengths
}

var head = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}

// member makes a file of deflate data and the content that it should have.
func member(deflate []byte, content string) []byte {
	file := append(slices.Clone(head), deflate...)
	file = binary.LittleEndian.AppendUint32(file, crc32.ChecksumIEEE([]byte(content)))
	return binary.LittleEndian.AppendUint32(file, uint32(len(content)))
}

func block() *bitWriter { return &bitWriter{} }

// fixedCode is the code of a symbol in a fixed block.
func fixedCode(symbol int) string {
	switch {
	case symbol < 144:
		return fmt.Sprintf("%08b", 0x30+symbol)
	case symbol < 256:
		return fmt.Sprintf("%09b", 0x190+symbol-144)
	case symbol < 280:
		return fmt.Sprintf("%07b", symbol-256)
	}
	return fmt.Sprintf("%08b", 0xc0+symbol-280)
}

const fixedEnd = "0000000"

// deep is a complete code with every length up to 15: the symbols from 0 have 1, 2 … 15, 15.
func deep(n, from int) []int {
	lengths := make([]int, n)
	for i := range 15 {
		lengths[from+i] = i + 1
	}
	lengths[from+15] = 15
	return lengths
}

// TestBlocks has blocks made by hand. What is taken and what is refused is as compress/gzip has it.
func TestBlocks(t *testing.T) {
	complete := alphabet(258, 'a', 2, 'b', 2, 256, 2, 257, 2) // 00 01 10 11
	for name, test := range map[string]struct {
		w       *bitWriter
		content string
		err     error
	}{
		"stored":        {block().bits(1, 1, 0, 2, 0, 5, 3, 16, 3^0xffff, 16, 'a', 8, 'b', 8, 'c', 8), "abc", nil},
		"stored, empty": {block().bits(0, 1, 0, 2, 0, 5, 0, 16, 0xffff, 16, 1, 1, 0, 2, 0, 5, 1, 16, 0xfffe, 16, 'x', 8), "x", nil},
		"stored, the rest of the byte is anything": {block().bits(1, 1, 0, 2, 31, 5, 1, 16, 0xfffe, 16, 'x', 8), "x", nil},
		"stored, wrong length":                     {block().bits(1, 1, 0, 2, 0, 5, 3, 16, 3, 16), "", errStored},
		"type 3":                                   {block().bits(1, 1, 3, 2), "", errBlock},

		"fixed":                 {block().bits(1, 1, 1, 2).codes(fixedCode('a') + fixedCode(200) + fixedEnd), "a\xc8", nil},
		"fixed, empty":          {block().bits(1, 1, 1, 2).codes(fixedEnd), "", nil},
		"fixed, twice":          {block().bits(0, 1, 1, 2).codes(fixedCode('a')+fixedEnd).bits(1, 1, 1, 2).codes("0000001 00000" + fixedEnd), "aaaa", nil},
		"fixed, longest":        {block().bits(1, 1, 1, 2).codes(fixedCode('a') + fixedCode(285) + "00000" + fixedEnd), strings.Repeat("a", 259), nil},
		"fixed, 284 with 31":    {block().bits(1, 1, 1, 2).codes(fixedCode('a') + fixedCode(284) + "11111 00000" + fixedEnd), strings.Repeat("a", 259), nil},
		"fixed, 286":            {block().bits(1, 1, 1, 2).codes(fixedCode(286) + fixedEnd), "", errSymbol},
		"fixed, 287":            {block().bits(1, 1, 1, 2).codes(fixedCode(287) + fixedEnd), "", errSymbol},
		"fixed, distance 30":    {block().bits(1, 1, 1, 2).codes(fixedCode('a') + "0000001 11110" + fixedEnd), "", errSymbol},
		"fixed, distance 31":    {block().bits(1, 1, 1, 2).codes(fixedCode('a') + "0000001 11111" + fixedEnd), "", errSymbol},
		"fixed, no history":     {block().bits(1, 1, 1, 2).codes("0000001 00000" + fixedEnd), "", errDistance},
		"fixed, too far":        {block().bits(1, 1, 1, 2).codes(fixedCode('a') + "0000001 00001" + fixedEnd), "", errDistance},
		"fixed, the rest is no": {block().bits(1, 1, 1, 2).codes(fixedCode('a') + fixedEnd + "111"), "a", nil},
		"fixed, no end":         {block().bits(1, 1, 1, 2).codes(fixedCode('a')), "", io.ErrUnexpectedEOF},

		"dynamic":                      {block().lengths(complete, []int{1, 1}).codes("00 01 11 1 10"), "abbab"[:2] + "aba", nil},
		"dynamic, then fixed":          {dynamicThenFixed(), "ab", nil},
		"dynamic, one distance":        {block().lengths(complete, []int{1}).codes("00 01 11 0 10"), "abbbb", nil},
		"dynamic, not that distance":   {block().lengths(complete, []int{1}).codes("00 01 11 1 10"), "", errSymbol},
		"dynamic, one longer distance": {block().lengths(complete, []int{2}).codes("00 10"), "", errCode},
		"dynamic, no distance":         {block().lengths(complete, []int{0}).codes("00 01 10"), "ab", nil},
		"dynamic, no distance, used":   {block().lengths(complete, []int{0}).codes("00 01 11 0 10"), "", errSymbol},
		"dynamic, only the end":        {block().lengths(alphabet(257, 256, 1), []int{0}).codes("0"), "", nil},
		"dynamic, not the end":         {block().lengths(alphabet(257, 256, 1), []int{0}).codes("1"), "", errSymbol},
		"dynamic, only a literal":      {block().lengths(alphabet(257, 'a', 1), []int{0}).codes("0001"), "", errSymbol},
		"dynamic, nothing":             {block().lengths(alphabet(257), []int{0}).codes("0"), "", errSymbol},
		"dynamic, no end":              {block().lengths(alphabet(257, 'a', 1, 'b', 1), []int{0}).codes("01010101"), "", io.ErrUnexpectedEOF},
		"dynamic, too many codes":      {block().lengths(alphabet(257, 'a', 1, 'b', 1, 256, 1), []int{0}).codes("01"), "", errCode},
		"dynamic, far too many codes":  {block().lengths(slices.Repeat([]int{1}, 286), slices.Repeat([]int{1}, 30)).codes("01"), "", errCode},
		"dynamic, too few codes":       {block().lengths(alphabet(257, 'a', 2, 'b', 2, 256, 2), []int{0}).codes("00"), "", errCode},
		"dynamic, too many distances":  {block().lengths(complete, []int{1, 1, 1}).codes("00"), "", errCode},
		"dynamic, too few distances":   {block().lengths(complete, []int{1, 2}).codes("00"), "", errCode},
		"dynamic, 287 literals":        {block().lengths(alphabet(287, 'a', 1, 256, 1), []int{0}).codes("01"), "", errCode},
		"dynamic, 31 distances":        {block().lengths(complete, alphabet(31, 0, 1, 1, 1)).codes("00 10"), "", errCode},
		"dynamic, longest codes": {block().lengths(deep(286, 256-15), deep(30, 0)).codes("111111111111110 111111111111110" +
			"111111111111111"), "\xff\xff", nil},
		"dynamic, distance with a link": {block().lengths(deep(286, 257-15), deep(30, 0)).codes(strings.Repeat("0", 39) + "10" +
			"111111111111111 1111111110 111 111111111111110"), strings.Repeat("\xf2", 39) + "\xf3\xf2\xf2\xf2", nil},
		"dynamic, 16 at the beginning": {block().bits(1, 1, 2, 2, 0, 5, 0, 5, 0, 4, 1, 3, 1, 3, 0, 3, 0, 3).
			codes("0"), "", errCode},
		"dynamic, more lengths than there are": {block().bits(1, 1, 2, 2, 0, 5, 0, 5, 0, 4, 0, 3, 0, 3, 1, 3, 1, 3).
			codes("1 1111111 1 1111111"), "", errCode},
		"dynamic, no code of lengths":  {block().bits(1, 1, 2, 2, 0, 5, 0, 5, 0, 4, 0, 3, 0, 3, 0, 3, 0, 3, 0, 9), "", errCode},
		"dynamic, bad code of lengths": {block().bits(1, 1, 2, 2, 0, 5, 0, 5, 0, 4, 1, 3, 1, 3, 1, 3, 0, 3, 0, 9), "", errCode},
	} {
		file := member(test.w.data, test.content)
		if test.err == io.ErrUnexpectedEOF {
			file = file[:len(file)-8]
		}
		got, err := read(file)
		if err != test.err || string(got) != test.content {
			t.Errorf("%s: %q, %v, not %q, %v", name, got, err, test.content, test.err)
		}
		if want, stdErr := standard(file); (stdErr == nil) != (err == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s: %q, %v, but compress/gzip %q, %v", name, got, err, want, stdErr)
		}
	}
}

// dynamicThenFixed has a fixed block between dynamic ones: the tables are made anew.
func dynamicThenFixed() *bitWriter {
	w := block().bits(0, 1, 1, 2).codes(fixedCode('a') + fixedEnd)
	from := w.n
	w.lengths(alphabet(257, 'b', 1, 256, 1), []int{0}).codes("01")
	w.data[from/8] &^= 1 << (from % 8) // not the last
	return w.bits(1, 1, 1, 2).codes(fixedEnd)
}

// TestFar has matches at all distances at which something changes, and each length, across the end of the window.
func TestFar(t *testing.T) {
	noise := make([]byte, windowSize)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for _, distance := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 257, 258, 259, historySize - 258, historySize} {
		data := noise[:historySize:historySize]
		for length := 3; len(data) < windowSize+historySize; length++ {
			for range 3 + length%256 {
				data = append(data, data[len(data)-distance])
			}
			data = append(data, byte(length))
		}
		got, err := read(compressed(t, data, flate.BestCompression))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("distance %d: %v", distance, err)
		}
	}
}

func TestMembers(t *testing.T) {
	empty, content := compressed(t, nil, 6), compressed(t, []byte("content"), 6)
	noHistory := member(block().bits(1, 1, 1, 2).codes("0000001 00000"+fixedEnd).data, "ttt")
	header := func(flags byte, rest string) []byte {
		b := append(slices.Clone(head), rest...)
		b[3] = flags
		return append(b, content[10:]...)
	}
	headerCRC := func(rest string) []byte {
		b := append(slices.Clone(head), rest...)
		b[3] = 2 | 16
		return append(binary.LittleEndian.AppendUint16(b, uint16(crc32.ChecksumIEEE(b))), content[10:]...)
	}
	change := func(at int) []byte {
		b := slices.Clone(content)
		b[(at+len(b))%len(b)] ^= 0x40
		return b
	}
	for name, test := range map[string]struct {
		file []byte
		want string
		err  error
	}{
		"nothing":         {nil, "", io.ErrUnexpectedEOF},
		"empty":           {empty, "", nil},
		"several":         {slices.Concat(content, empty, empty, content, empty), "contentcontent", nil},
		"own history":     {slices.Concat(content, noHistory), "", errDistance},
		"trailing":        {slices.Concat(content, []byte("something")), "", errTrailing},
		"trailing zeros":  {slices.Concat(content, make([]byte, 512)), "", errTrailing},
		"trailing magic":  {slices.Concat(content, head[:2]), "", io.ErrUnexpectedEOF},
		"first byte":      {change(0), "", errHeader},
		"second byte":     {change(1), "", errHeader},
		"method":          {change(2), "", errHeader},
		"reserved flags":  {header(0x20, ""), "", errHeader},
		"text":            {header(1, ""), "content", nil},
		"extra":           {header(4, "\x04\x00abcd"), "content", nil},
		"extra, too long": {header(4, "\xff\xffabcd"), "", io.ErrUnexpectedEOF},
		"name":            {header(8, "name\x00"), "content", nil},
		"longest name":    {header(8, strings.Repeat("n", 511)+"\x00"), "content", nil},
		"too long a name": {header(8, strings.Repeat("n", 512)+"\x00"), "", errHeader},
		"comment":         {header(16, "comment\x00"), "content", nil},
		"all":             {header(4|8|16, "\x01\x00xname\x00comment\x00"), "content", nil},
		"header CRC":      {headerCRC("comment\x00"), "content", nil},
		"bad header CRC":  {header(2|16, "comment\x00\x00\x00"), "", errHeader},
		"CRC":             {change(-8), "", errChecksum},
		"size":            {change(-4), "", errChecksum},
	} {
		got, err := read(test.file)
		if err != test.err || string(got) != test.want {
			t.Errorf("%s: %q, %v, not %q, %v", name, got, err, test.want, test.err)
		}
	}
}

func standard(file []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// FuzzReader compares with klauspost's reader, which refuses reserved flags as we do, and compress/gzip doesn't.
func FuzzReader(f *testing.F) {
	for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
		f.Add(compressed(f, sample(3000), level))
	}
	f.Add(append(compressed(f, sample(100), 6), compressed(f, sample(100), 1)...))
	f.Add(member(block().lengths(deep(286, 256-15), deep(30, 0)).codes("111111111111110 111111111111111").data, "\xff"))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(file)), 64<<20))
		var want []byte
		r, wantErr := klauspost.NewReader(bytes.NewReader(file))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(r, 64<<20))
		}
		if (err == nil) != (wantErr == nil) || !bytes.HasPrefix(want, got) || err == nil && len(got) != len(want) {
			t.Errorf("%d bytes, %v, not %d bytes, %v", len(got), err, len(want), wantErr)
		}
	})
}

// BenchmarkReader compares with the other readers on Go's own source, or the file that GZIP_FILE names.
func BenchmarkReader(b *testing.B) {
	names, err := filepath.Glob(filepath.Join(gobuild.Default.GOROOT, "src/*/*.go"))
	if err != nil {
		b.Fatal(err)
	}
	if name := os.Getenv("GZIP_FILE"); name != "" {
		names = []string{name}
	}
	var file []byte
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		file = append(file, data...)
	}
	if !bytes.HasPrefix(file, head[:2]) {
		file = compressed(b, file, 6)
	}
	for _, reader := range []struct {
		name string
		open func(io.Reader) (io.Reader, error)
	}{
		{"compress", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
		{"klauspost", func(r io.Reader) (io.Reader, error) { return klauspost.NewReader(r) }},
		{"inflate", func(r io.Reader) (io.Reader, error) { return NewReader(r), nil }},
	} {
		b.Run(reader.name, func(b *testing.B) {
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := reader.open(bytes.NewReader(file))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
