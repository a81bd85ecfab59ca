package reclog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"launcher/internal/errs"
)

// memory is a File with room for limit bytes.
type memory struct {
	b     []byte
	limit int
}

var errFull = errors.New("full")

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	n := len(p)
	if m.limit > 0 {
		n = min(n, max(0, m.limit-int(off)))
	}
	if need := int(off) + n; need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	copy(m.b[off:], p[:n])
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func (m *memory) Seek(int64, int) (int64, error) { return int64(len(m.b)), nil }
func (m *memory) Truncate(n int64) error         { m.b = m.b[:n]; return nil }

type rec struct {
	seq uint64
	val string
}

// open gives what Open reads from f.
func open(t testing.TB, f File, base int64, first uint64) (*Log, []rec, error) {
	t.Helper()
	var got []rec
	l, err := Open(f, base, first, func(seq uint64, p []byte) error {
		got = append(got, rec{seq, string(p)})
		return nil
	})
	return l, got, err
}

// fill writes n records in writes of one to four.
func fill(t testing.TB, f File, n int) (want []rec, ends []int64, writes []int64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	l, _, err := open(t, f, 16, 7)
	if err != nil {
		t.Fatal(err)
	}
	for len(want) < n {
		var batch [][]byte
		at := l.End()
		writes = append(writes, at)
		for range min(1+rnd.IntN(4), n-len(want)) {
			p := bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(60))
			want = append(want, rec{7 + uint64(len(want)), string(p)})
			batch = append(batch, p)
			at += Header + int64(len(p))
			ends = append(ends, at)
		}
		if _, err := l.Append(batch...); err != nil {
			t.Fatal(err)
		}
	}
	return want, ends, writes
}

func TestTruncatedAnywhere(t *testing.T) {
	var f memory
	f.b = make([]byte, 16)
	want, ends, _ := fill(t, &f, 40)
	for cut := 16; cut <= len(f.b); cut++ {
		c := memory{b: slices.Clone(f.b[:cut])}
		l, got, err := open(t, &c, 16, 7)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		whole := 0
		for whole < len(ends) && ends[whole] <= int64(cut) {
			whole++
		}
		if !slices.Equal(got, want[:whole]) {
			t.Fatalf("cut at %d: %d records, want %d", cut, len(got), whole)
		}
		// Writing goes on behind the last good record.
		if _, err := l.Append([]byte("next")); err != nil {
			t.Fatal(err)
		}
		if _, again, err := open(t, &c, 16, 7); err != nil || len(again) != whole+1 || again[whole] != (rec{7 + uint64(whole), "next"}) {
			t.Fatalf("cut at %d, then written: %v, %v", cut, again, err)
		}
	}
}

// TestFlippedAnywhere: a flipped bit is damage when a later write is readable, a torn
// tail when none is, and never gives a record that was not written.
// TestShortensWhileRead: a reader beside a writer that takes a torn write back sees the
// file end earlier than it was told; that is no error.
func TestShortensWhileRead(t *testing.T) {
	var f memory
	f.b = make([]byte, 16)
	want, ends, _ := fill(t, &f, 40)
	told := int64(len(f.b))
	for cut := 16; cut < len(f.b); cut++ {
		whole := 0
		for whole < len(ends) && ends[whole] <= int64(cut) {
			whole++
		}
		n := 0
		end, next, err := Scan(&memory{b: f.b[:cut]}, 16, told, 7, func(seq uint64, p []byte) error {
			if (rec{seq, string(p)}) != want[n] {
				t.Errorf("cut at %d: record %d is %q", cut, seq, p)
			}
			n++
			return nil
		})
		if err != nil || n != whole || next != 7+uint64(whole) || end > int64(cut) {
			t.Fatalf("cut at %d: %d records up to %d, want %d: %v", cut, n, end, whole, err)
		}
	}
}

func TestFlippedAnywhere(t *testing.T) {
	var f memory
	f.b = make([]byte, 16)
	want, ends, writes := fill(t, &f, 40)
	for i := 16; i < len(f.b); i++ {
		c := memory{b: slices.Clone(f.b)}
		c.b[i] ^= 1 << (i % 8)
		_, got, err := open(t, &c, 16, 7)
		hit := 0
		for ends[hit] <= int64(i) {
			hit++
		}
		if len(got) > hit || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("flip at %d: wrong records", i)
		}
		start := int64(16)
		if hit > 0 {
			start = ends[hit-1]
		}
		switch later := writes[len(writes)-1] > start; {
		case later && !errs.Is(err, errs.Corrupt):
			t.Fatalf("flip at %d, with a later write behind it: %v", i, err)
		case !later && err != nil:
			t.Fatalf("flip at %d in the last write: %v", i, err)
		case !later && len(got) != hit:
			t.Fatalf("flip at %d: %d records, want %d", i, len(got), hit)
		}
	}
}

func TestHoleInLastWriteIsTorn(t *testing.T) {
	var f memory
	l, _, err := open(t, &f, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append([]byte("safe")); err != nil {
		t.Fatal(err)
	}
	end := l.End()
	if _, err := l.Append([]byte("lost"), []byte("kept"), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	clear(f.b[end : end+10]) // the first block never reached the disk, the others did
	_, got, err := open(t, &f, 0, 1)
	if err != nil || !slices.Equal(got, []rec{{1, "safe"}}) {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestPayloadThatHoldsALog(t *testing.T) {
	var inner, f memory
	in, _, _ := open(t, &inner, 0, 1)
	for range 20 {
		if _, err := in.Append([]byte("inner")); err != nil {
			t.Fatal(err)
		}
	}
	l, _, _ := open(t, &f, 0, 1)
	if _, err := l.Append(inner.b); err != nil {
		t.Fatal(err)
	}
	f.b[0] ^= 1 // torn: what is inside must not count as later records
	_, got, err := open(t, &f, 0, 1)
	if err != nil || len(got) != 0 {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestFullCountsForNothing(t *testing.T) {
	f := memory{limit: 200}
	l, _, _ := open(t, &f, 0, 1)
	n := 0
	for ; ; n++ {
		if _, err := l.Append([]byte("0123456789"), []byte("abc")); err != nil {
			if !errors.Is(err, errFull) {
				t.Fatal(err)
			}
			break
		}
	}
	if int64(len(f.b)) != l.End() {
		t.Errorf("the file has %d bytes, the log %d", len(f.b), l.End())
	}
	f.limit = 0
	if seq, err := l.Append([]byte("room")); err != nil || seq != uint64(2*n+1) {
		t.Fatalf("seq %d, %v", seq, err)
	}
	_, got, err := open(t, &f, 0, 1)
	if err != nil || len(got) != 2*n+1 {
		t.Fatalf("%d records, %v", len(got), err)
	}
}

func TestUndo(t *testing.T) {
	var f memory
	l, _, _ := open(t, &f, 0, 1)
	_, _ = l.Append([]byte("a"))
	end, next := l.End(), l.Next()
	_, _ = l.Append([]byte("b"), []byte("c"))
	if err := l.Undo(end, next); err != nil {
		t.Fatal(err)
	}
	if seq, err := l.Append([]byte("d")); err != nil || seq != 2 {
		t.Fatalf("%d, %v", seq, err)
	}
	if _, got, err := open(t, &f, 0, 1); err != nil || !slices.Equal(got, []rec{{1, "a"}, {2, "d"}}) {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestWrongNumber(t *testing.T) {
	var f memory
	l, _, _ := open(t, &f, 0, 1)
	_, _ = l.Append([]byte("a"))
	if _, _, err := open(t, &f, 0, 2); !errs.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
}

func TestStops(t *testing.T) {
	var f memory
	l, _, _ := open(t, &f, 0, 1)
	_, _ = l.Append([]byte("a"), []byte("b"))
	stop := errors.New("stop")
	if _, err := Open(&f, 0, 1, func(uint64, []byte) error { return stop }); err != stop {
		t.Fatal(err)
	}
	if _, err := l.Append(make([]byte, MaxRecord+1)); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}

func TestOnDiskAndLongRecords(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, _, err := open(t, f, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	var want []rec
	for i := range 30 {
		p := bytes.Repeat([]byte(fmt.Sprint(i)), i*10_000)
		want = append(want, rec{uint64(i + 1), string(p)})
		if _, err := l.Append(p); err != nil {
			t.Fatal(err)
		}
	}
	_, got, err := open(t, f, 0, 1)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%d records, %v", len(got), err)
	}
	if end, _ := f.Seek(0, io.SeekEnd); end != l.End() {
		t.Errorf("file %d, log %d", end, l.End())
	}
}

func FuzzOpen(f *testing.F) {
	m := memory{b: make([]byte, 16)}
	fill(f, &m, 12)
	f.Add(m.b[16:])
	f.Add(m.b[16 : len(m.b)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		m := memory{b: append(make([]byte, 16), b...)}
		l, got, err := open(t, &m, 16, 7)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		if _, err := l.Append([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_, again, err := open(t, &m, 16, 7)
		if err != nil || len(again) != len(got)+1 {
			t.Fatalf("%d records, then %d: %v", len(got), len(again), err)
		}
	})
}
