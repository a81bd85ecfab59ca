package follow

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/reclog"
)

func record(seq uint64) []byte {
	return fmt.Appendf(nil, "record %d %s", seq, strings.Repeat("x", int(seq%40)))
}

func records(first, last uint64) (out [][]byte) {
	for s := first; s <= last; s++ {
		out = append(out, record(s))
	}
	return out
}

func begin(t *testing.T, c *Copies, epoch, last uint64) *Writer {
	t.Helper()
	w, err := c.Begin(epoch, last)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func best(t *testing.T, dir string) Found {
	t.Helper()
	all := Look(dir)
	if len(all) == 0 {
		t.Fatal("no copy")
	}
	return all[0]
}

func TestNewerEpochReplacesOnceWhole(t *testing.T) {
	dir := t.TempDir()
	c := New(dir, 0)
	w := begin(t, c, 1, 3)
	must(t, w.Append(1, records(1, 2)))
	if f := best(t, dir); f.Whole || f.Last != 2 {
		t.Errorf("a copy short of what was safe when it began: %+v", f)
	}
	must(t, w.Append(2, records(2, 5))) // the first is there
	if f := best(t, dir); !f.Whole || f.Last != 5 || f.Epoch != 1 {
		t.Errorf("the copy: %+v", f)
	}
	if err := w.Append(7, records(7, 7)); !errs.Is(err, errs.Invalid) {
		t.Errorf("a gap: %v", err)
	}
	next := begin(t, c, 2, 6)
	if err := w.Append(6, records(6, 6)); !errs.Is(err, errs.Fenced) {
		t.Errorf("the head that was replaced writes: %v", err)
	}
	if _, err := c.Begin(1, 0); !errs.Is(err, errs.Fenced) {
		t.Errorf("the head that was replaced begins: %v", err)
	}
	must(t, next.Snapshot(4, []byte("state")))
	if f := best(t, dir); f.Epoch != 1 || len(Look(dir)) != 2 {
		t.Errorf("a copy that is not whole is taken before one that is: %+v", f)
	}
	must(t, next.Append(5, records(5, 6)))
	if f := best(t, dir); f.Epoch != 2 || f.Last != 6 || len(Look(dir)) != 1 {
		t.Errorf("the newer copy: %+v", Look(dir))
	}
	// Another process knows it from the directory.
	if _, err := New(dir, 0).Begin(1, 0); !errs.Is(err, errs.Fenced) {
		t.Errorf("after a restart: %v", err)
	}
	c.Heard(9)
	if err := next.Append(7, records(7, 7)); !errs.Is(err, errs.Fenced) {
		t.Errorf("after a newer head was heard of: %v", err)
	}
}

func TestOneConnectionAtATime(t *testing.T) {
	c := New(t.TempDir(), 0)
	old := begin(t, c, 1, 0)
	must(t, old.Append(1, records(1, 3)))
	w := begin(t, c, 1, 3)
	if w.Next() != 4 {
		t.Errorf("the next record is %d", w.Next())
	}
	if err := old.Append(4, records(4, 4)); !errs.Is(err, errs.Unavailable) {
		t.Errorf("the old connection writes: %v", err)
	}
	must(t, w.Append(4, records(4, 4)))
}

func TestLimit(t *testing.T) {
	c := New(t.TempDir(), 4096)
	w := begin(t, c, 1, 0)
	if err := w.Append(1, [][]byte{make([]byte, 5000)}); !errs.Is(err, errs.Exhausted) {
		t.Errorf("a record above the limit: %v", err)
	}
	for seq := uint64(1); ; seq++ {
		if err := w.Append(seq, [][]byte{make([]byte, 500)}); err != nil {
			if !errs.Is(err, errs.Exhausted) || seq < 5 {
				t.Fatalf("record %d: %v", seq, err)
			}
			must(t, w.Snapshot(seq-1, []byte("short"))) // makes room
			must(t, w.Append(seq, [][]byte{make([]byte, 500)}))
			return
		}
	}
}

// TestCuts: whatever is cut off the newest segment, or damaged in it, the copy is a prefix,
// and goes on from there.
func TestCuts(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		c := New(dir, 0)
		w := begin(t, c, 3, 0)
		last, snap := uint64(0), uint64(0)
		for range 1 + r.IntN(12) {
			switch n := uint64(1 + r.IntN(4)); {
			case r.IntN(4) == 0:
				w = begin(t, c, 3, last) // a new connection, a new segment
			case r.IntN(4) == 0 && last > 0:
				snap = max(snap, 1+r.Uint64N(last))
				must(t, w.Snapshot(snap, fmt.Appendf(nil, "state %d", snap)))
			default:
				must(t, w.Append(last+1, records(last+1, last+n)))
				last += n
			}
		}
		w.Close()
		segs, _ := filepath.Glob(filepath.Join(dir, "3", "seg-*"))
		slices.Sort(segs)
		if len(segs) > 0 {
			path := segs[len(segs)-1]
			b, _ := os.ReadFile(path)
			cut := r.IntN(len(b) + 1)
			b = b[:cut]
			if cut > 0 && r.IntN(2) == 0 {
				b[r.IntN(cut)] ^= 1
			}
			must(t, os.WriteFile(path, b, 0o600))
		}
		f := best(t, dir)
		if f.Last > last || f.Last < snap {
			t.Fatalf("seed %d: a copy up to %d, of %d with a snapshot of %d", seed, f.Last, last, snap)
		}
		w = begin(t, New(dir, 0), 3, last)
		must(t, w.Append(max(w.Next(), 1), records(max(w.Next(), 1), last+3)))
		w.Close()
		into := filepath.Join(t.TempDir(), "journal")
		must(t, Install(best(t, dir), into))
		if got := readBack(t, into, snap); got != last+3 {
			t.Fatalf("seed %d: installed up to %d, want %d", seed, got, last+3)
		}
	}
}

// readBack reads records behind snap as far as they are right.
func readBack(t *testing.T, dir string, snap uint64) uint64 {
	t.Helper()
	ents, err := os.ReadDir(dir)
	must(t, err)
	next := snap + 1
	for _, e := range ents { // in order of their names
		first, _, ok := reclog.ParseSegment(e.Name())
		if !ok || first > next {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		_, _, err = reclog.Scan(bytes.NewReader(b), reclog.SegmentHeader, int64(len(b)), first, func(seq uint64, p []byte) error {
			if !bytes.Equal(p, record(seq)) {
				t.Errorf("record %d is %q", seq, p)
			}
			next = max(next, seq+1)
			return nil
		})
		must(t, err)
	}
	return next - 1
}

// script is a stream of messages.
type script struct {
	in  []message
	out []message
}

type message struct {
	typ  uint16
	body []byte
}

func (s *script) ReadMsg() (uint16, []byte, error) {
	if len(s.in) == 0 {
		return 0, nil, io.EOF
	}
	m := s.in[0]
	s.in = s.in[1:]
	return m.typ, m.body, nil
}

func (s *script) WriteMsg(typ uint16, v any) error {
	s.out = append(s.out, message{typ, wire.Marshal(v)})
	return nil
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	s := &script{in: []message{
		{MsgBegin, wire.Marshal(Begin{Epoch: 2, Last: 6})},
		{MsgPart, wire.Marshal(Part{Seq: 4, Snapshot: true, Data: []byte("sta")})},
		{MsgPart, wire.Marshal(Part{Seq: 4, Snapshot: true, Data: []byte("te"), Final: true})},
		{MsgRecords, wire.Marshal(Records{First: 5, Records: records(5, 5)})},
		{MsgPart, wire.Marshal(Part{Seq: 6, Data: record(6)[:3]})},
		{MsgPart, wire.Marshal(Part{Seq: 6, Data: record(6)[3:], Final: true})},
	}}
	must(t, New(dir, 0).Serve(s))
	var have []uint64
	for _, m := range s.out {
		var h Have
		must(t, wire.Unmarshal(m.body, &h))
		have = append(have, h.Next)
	}
	if !slices.Equal(have, []uint64{0, 5, 6, 7}) {
		t.Errorf("answers: %v", have)
	}
	if f := best(t, dir); !f.Whole || f.Last != 6 {
		t.Errorf("the copy: %+v", f)
	}
}

func FuzzServe(f *testing.F) {
	f.Add(wire.Marshal(Begin{Epoch: 1, Last: 2}), uint16(0), wire.Marshal(Records{First: 1, Records: records(1, 2)}), uint16(1), wire.Marshal(Part{Seq: 1, Snapshot: true, Data: []byte("s"), Final: true}))
	f.Fuzz(func(t *testing.T, first []byte, ta uint16, a []byte, tb uint16, b []byte) {
		dir := t.TempDir()
		c := New(dir, 64<<10)
		s := &script{in: []message{{MsgBegin, first}, {MsgPart + ta%3, a}, {MsgPart + tb%3, b}, {MsgRecords, a}}}
		_ = c.Serve(s)
		for _, x := range Look(dir) {
			if n := dirSize(x.Dir); n > 65<<10 {
				t.Errorf("a copy of %d bytes", n)
			}
		}
	})
}

func FuzzLook(f *testing.F) {
	seg := reclog.AppendSegmentHeader(nil, 1, 1)
	f.Add(reclog.AppendRecord(seg, int64(len(seg)), 0, 1, []byte("x")), []byte(nil))
	f.Add([]byte{}, append(reclog.AppendSnapshotHeader(nil, 5, []byte("state")), "state"...))
	f.Fuzz(func(t *testing.T, seg, snap []byte) {
		dir := t.TempDir()
		d := filepath.Join(dir, "1")
		must(t, os.MkdirAll(d, 0o700))
		must(t, os.WriteFile(filepath.Join(d, reclog.SegmentName(1, 1)), seg, 0o600))
		must(t, os.WriteFile(filepath.Join(d, reclog.SnapshotName(5)), snap, 0o600))
		for _, x := range Look(dir) {
			must(t, Install(x, filepath.Join(dir, "journal")))
		}
	})
}
