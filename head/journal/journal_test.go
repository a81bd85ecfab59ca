package journal

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/internal/errs"
)

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustOpen(t testing.TB, dir string, o Options) (*Journal, *Recovered) {
	t.Helper()
	j, rec, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return j, rec
}

func mustClose(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(bounded(t)); err != nil {
		t.Fatal(err)
	}
}

// val is record seq, of varying length.
func val(seq uint64) []byte {
	return append(fmt.Appendf(nil, "record %d ", seq), bytes.Repeat([]byte{byte(seq)}, int(seq*7%50))...)
}

// fill appends records up to last and waits for them.
func fill(t testing.TB, j *Journal, last uint64) {
	t.Helper()
	for j.Safe() < last {
		from := j.Safe() + 1
		var batch [][]byte
		for s := from; s <= min(last, from+2); s++ {
			batch = append(batch, val(s))
		}
		seq, err := j.Append(batch...)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Wait(bounded(t), seq); err != nil {
			t.Fatal(err)
		}
	}
}

// check says what is wrong with rec if it is not exactly records 1 to last.
func check(rec *Recovered, last uint64) error {
	if rec.Last() != last {
		return fmt.Errorf("recovered up to record %d, want %d", rec.Last(), last)
	}
	return checkPrefix(rec)
}

func checkPrefix(rec *Recovered) error {
	if rec.SnapshotSeq > 0 && string(rec.Snapshot) != fmt.Sprint("state ", rec.SnapshotSeq) {
		return fmt.Errorf("snapshot %d is %q", rec.SnapshotSeq, rec.Snapshot)
	}
	for i, r := range rec.Records {
		if seq := rec.SnapshotSeq + 1 + uint64(i); !bytes.Equal(r, val(seq)) {
			return fmt.Errorf("record %d is %q", seq, r)
		}
	}
	return nil
}

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	var epoch uint64
	for life := range uint64(5) {
		j, rec := mustOpen(t, dir, Options{SegmentSize: 600})
		if err := check(rec, life*40); err != nil {
			t.Fatal(err)
		}
		if j.Epoch() <= epoch || (life > 0 && rec.Epoch != epoch) {
			t.Fatalf("epoch %d after %d (recovered %d)", j.Epoch(), epoch, rec.Epoch)
		}
		epoch = j.Epoch()
		fill(t, j, life*40+40)
		mustClose(t, j)
		if _, err := j.Append([]byte("x")); err == nil {
			t.Fatal("appended to a closed journal")
		}
	}
	rec, err := Load(dir)
	if err == nil {
		err = check(rec, 200)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotRemovesSegments(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{SegmentSize: 500})
	fill(t, j, 100)
	if err := j.Snapshot(101, nil); !errs.Is(err, errs.Internal) {
		t.Errorf("snapshot of the future: %v", err)
	}
	if err := j.Snapshot(90, []byte("state 90")); err != nil {
		t.Fatal(err)
	}
	fill(t, j, 150)
	if err := j.Snapshot(150, []byte("state 150")); err != nil {
		t.Fatal(err)
	}
	fill(t, j, 160)
	if state, seq, err := j.Newest(); err != nil || seq != 150 || string(state) != "state 150" {
		t.Errorf("newest: %q %d %v", state, seq, err)
	}
	if _, err := j.ReadFrom(10, nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("reading what is gone: %v", err)
	}
	mustClose(t, j)
	names, _ := os.ReadDir(dir)
	if len(names) > 6 {
		t.Errorf("%d files are left: %v", len(names), names)
	}
	j, rec := mustOpen(t, dir, Options{})
	if err := check(rec, 160); err != nil || rec.SnapshotSeq != 150 {
		t.Fatalf("snapshot %d, %v", rec.SnapshotSeq, err)
	}
	mustClose(t, j)
}

func TestReadFrom(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{SegmentSize: 400})
	fill(t, j, 60)
	next := uint64(1)
	read := func() {
		t.Helper()
		var err error
		next, err = j.ReadFrom(next, func(seq uint64, r []byte) error {
			if !bytes.Equal(r, val(seq)) {
				return fmt.Errorf("record %d is %q", seq, r)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	read()
	if next != 61 {
		t.Fatalf("next is %d", next)
	}
	more := j.Changed()
	fill(t, j, 61)
	<-more
	if read(); next != 62 {
		t.Fatalf("next is %d", next)
	}
	mustClose(t, j)
}

// slow is a disk.
func slow() error {
	time.Sleep(2 * time.Millisecond) // sleep: it is what is tested
	return nil
}

func TestGroupCommit(t *testing.T) {
	var syncs int
	var mu sync.Mutex
	j, _, err := open(t.TempDir(), Options{}, func(path string) (file, error) {
		f, err := createFile(path)
		return &faulty{file: f, sync: func() error { mu.Lock(); syncs++; mu.Unlock(); return slow() }}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 10 {
				seq, err := j.Append([]byte("x"))
				if err == nil {
					err = j.Wait(bounded(t), seq)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, j)
	if syncs > 250 {
		t.Errorf("500 appends by 50 callers took %d syncs", syncs)
	}
}

// TestTruncatedAnywhere is the promise about torn tails: whatever length the last
// segment has, a prefix is replayed, all that fits and nothing else.
func TestTruncatedAnywhere(t *testing.T) {
	dir, name, b := sample(t, 20, Options{})
	for cut := 0; cut <= len(b); cut++ {
		rec := reopenWith(t, dir, name, b[:cut], cut%60 == 0)
		whole := uint64(0)
		for end := segHeader; whole < 20; whole++ {
			if end += 20 + len(val(whole+1)); end > cut {
				break
			}
		}
		if err := check(rec, whole); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

func TestTruncatedBig(t *testing.T) {
	const last = 8000
	dir, name, b := sample(t, last, Options{SegmentSize: 128 << 10})
	rnd := rand.New(rand.NewPCG(1, 2))
	first, _ := parseSegment(name)
	for i := range 200 {
		cut := rnd.IntN(len(b) + 1)
		rec := reopenWith(t, dir, name, b[:cut], i%20 == 0)
		if err := checkPrefix(rec); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		size := segHeader
		for s := first.first; s <= rec.Last(); s++ {
			size += 20 + len(val(s))
		}
		if rec.Last()+1 < first.first || (cut >= segHeader && (size > cut || (rec.Last() < last && size+20+len(val(rec.Last()+1)) <= cut))) {
			t.Fatalf("cut at %d: recovered up to %d, which is %d bytes", cut, rec.Last(), size)
		}
	}
}

// sample makes a journal of so many records and gives the last segment that has any.
func sample(t *testing.T, last uint64, o Options) (dir, name string, b []byte) {
	t.Helper()
	dir = t.TempDir()
	j, _ := mustOpen(t, dir, o)
	for s := uint64(1); s <= last; s++ {
		if _, err := j.Append(val(s)); err != nil {
			t.Fatal(err)
		}
		if s%(last/10) == 0 {
			if err := j.Sync(bounded(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, j)
	segs, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	slices.Sort(segs)
	path := segs[len(segs)-1]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Base(path), b
}

// reopenWith reads the journal with b in its segment name. With write it checks on a
// copy that writing and opening once more go on from there.
func reopenWith(t *testing.T, dir, name string, b []byte, write bool) *Recovered {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if !write {
		rec, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	cp := copyDir(t, dir)
	defer os.RemoveAll(cp)
	j, rec := mustOpen(t, cp, Options{})
	seq, err := j.Append([]byte("after"))
	if err == nil {
		err = j.Wait(bounded(t), seq)
	}
	if err != nil || seq != rec.Last()+1 {
		t.Fatalf("append after recovery: %d, %v", seq, err)
	}
	mustClose(t, j)
	again, err := Load(cp)
	if err != nil || again.Last() != seq || string(again.Records[len(again.Records)-1]) != "after" || again.Cut != 0 {
		t.Fatalf("opened again: %v", err)
	}
	return rec
}

func copyDir(t *testing.T, dir string) string {
	t.Helper()
	cp, err := os.MkdirTemp(t.TempDir(), "copy")
	if err == nil {
		err = os.CopyFS(cp, os.DirFS(dir))
	}
	if err != nil {
		t.Fatal(err)
	}
	return cp
}

// TestDamage: damage before the end names file and offset; nothing is skipped.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{SegmentSize: 700})
	fill(t, j, 60)
	mustClose(t, j)
	segs, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	slices.Sort(segs)
	if len(segs) < 3 {
		t.Fatalf("%d segments", len(segs))
	}
	for k, path := range segs {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(b); i += 3 {
			bad := slices.Clone(b)
			bad[i] ^= 0x10
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			rec, err := Load(dir)
			switch {
			case err != nil && (!errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "offset")):
				t.Fatalf("flip at %d of %s: %v", i, path, err)
			case err == nil && k < len(segs)-1:
				t.Fatalf("flip at %d of %s, which is not the last, was not noticed", i, path)
			case err == nil:
				if err := checkPrefix(rec); err != nil {
					t.Fatalf("flip at %d of %s: %v", i, path, err)
				}
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(segs[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), segs[0]) {
		t.Errorf("a missing segment: %v", err)
	}
	if err := os.Remove(segs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "gap") {
		t.Errorf("the first segment missing: %v", err)
	}
}

func TestDamagedSnapshot(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{})
	fill(t, j, 5)
	if err := j.Snapshot(5, []byte("state 5")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	path := filepath.Join(dir, snapshotName(5))
	b, _ := os.ReadFile(path)
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if _, _, err := Open(dir, Options{}); !errs.Is(err, errs.Corrupt) {
		t.Error(err)
	}
}

// TestFenced: once a newer writer has opened, the older one's appends fail, what it
// wrote is never read, and it can do the journal no harm.
func TestFenced(t *testing.T) {
	dir := t.TempDir()
	var stalls []error
	old, _ := mustOpen(t, dir, Options{OnStall: func(err error) { stalls = append(stalls, err) }})
	fill(t, old, 10)
	new, rec := mustOpen(t, dir, Options{})
	if err := check(rec, 10); err != nil {
		t.Fatal(err)
	}
	seq, err := old.Append([]byte("from the grave"))
	if err == nil {
		err = old.Wait(bounded(t), seq)
	}
	if !errs.Is(err, errs.Fenced) {
		t.Fatalf("append of the older writer: %v", err)
	}
	if _, err := old.Append([]byte("x")); !errs.Is(err, errs.Fenced) {
		t.Fatal(err)
	}
	if err := old.Snapshot(10, []byte("state 10")); !errs.Is(err, errs.Fenced) {
		t.Fatal(err)
	}
	if err := old.Close(bounded(t)); !errs.Is(err, errs.Fenced) && err != nil {
		t.Fatal(err)
	}
	if len(stalls) != 1 || !errs.Is(stalls[0], errs.Fenced) {
		t.Errorf("told %v", stalls)
	}
	fill(t, new, 20)
	mustClose(t, new)
	got, err := Load(dir)
	if err == nil {
		err = check(got, 20)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyWritersClaim: writers that open at the same time, and append as soon as they
// have, never share a number, exactly one is left, and what any of them was told is safe
// is there in the end, in the order in which it was told.
func TestManyWritersClaim(t *testing.T) {
	dir := t.TempDir()
	const writers, rounds = 8, 3
	var mu sync.Mutex
	var js []*Journal
	told := map[string]bool{}
	write := func(j *Journal, text string) error {
		seq, err := j.Append([]byte(text))
		if err == nil {
			err = j.Wait(bounded(t), seq)
		}
		mu.Lock()
		told[text] = err == nil
		mu.Unlock()
		return err
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				j, _, err := Open(dir, Options{})
				if errs.Is(err, errs.Fenced) {
					continue // replaced before it had begun
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				js = append(js, j)
				mu.Unlock()
				for i := range 3 {
					err := write(j, fmt.Sprintf("writer %d round %d record %d", w, r, i))
					if err == nil && i == 1 {
						err = j.Snapshot(0, nil) // at no record: prunes nothing, but moves files
					}
					if err != nil && !errs.Is(err, errs.Fenced) {
						t.Errorf("writer %d: %v", j.Epoch(), err)
					}
				}
			}
		})
	}
	wg.Wait()
	epochs := map[uint64]bool{}
	var highest uint64
	for _, j := range js {
		if epochs[j.Epoch()] {
			t.Errorf("two writers with epoch %d", j.Epoch())
		}
		epochs[j.Epoch()] = true
		highest = max(highest, j.Epoch())
	}
	left := 0
	for _, j := range js {
		err := write(j, fmt.Sprintf("at last %d", j.Epoch()))
		switch {
		case err == nil:
			left++
			if j.Epoch() != highest {
				t.Errorf("writer %d can write, though there was %d", j.Epoch(), highest)
			}
		case !errs.Is(err, errs.Fenced):
			t.Errorf("writer %d: %v", j.Epoch(), err)
		}
		_ = j.Close(bounded(t))
	}
	if left != 1 {
		t.Errorf("%d writers are left", left)
	}
	rec, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for i, r := range rec.Records {
		if _, twice := found[string(r)]; twice {
			t.Errorf("%q is there twice", r)
		}
		found[string(r)] = i
	}
	for text, safe := range told {
		if _, there := found[text]; safe && !there {
			t.Errorf("%q was safe and is gone", text)
		}
	}
	names, _ := filepath.Glob(filepath.Join(dir, claimPrefix+"*"))
	if len(names) > 2*keepClaims {
		t.Errorf("%d claims are left: %q", len(names), names)
	}
}

// TestClaims: a stale view of the directory gives nobody a number that was given before.
func TestClaims(t *testing.T) {
	dir := t.TempDir()
	n, text, err := claim(dir)
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
	old := &Journal{dir: dir, epoch: n, claim: text}
	if err := old.Check(); err != nil {
		t.Fatal(err)
	}
	for want := uint64(2); want < 2*keepClaims; want++ {
		n, text, err := claim(dir)
		if err != nil || n != want {
			t.Fatal(n, err)
		}
		if err := (&Journal{dir: dir, epoch: n, claim: text}).Check(); err != nil {
			t.Fatal(err)
		}
		if err := old.Check(); !errs.Is(err, errs.Fenced) {
			t.Fatal(err)
		}
		if err := createSafe(filepath.Join(dir, claimName(n-1)), "x"); !os.IsExist(err) {
			t.Fatalf("the number before %d can be had again: %v", n, err)
		}
	}
	taken, _, _ := claims(dir)
	if len(taken) > keepClaims+1 {
		t.Errorf("claims %d are left", taken)
	}
	// Claims that are lost do not make numbers start again where there are segments.
	j, _ := mustOpen(t, dir, Options{})
	was := j.Epoch()
	mustClose(t, j)
	names, _ := filepath.Glob(filepath.Join(dir, claimPrefix+"*"))
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Check(); !errs.Is(err, errs.Fenced) {
		t.Error(err)
	}
	j, _ = mustOpen(t, dir, Options{})
	if j.Epoch() <= was {
		t.Errorf("epoch %d after %d", j.Epoch(), was)
	}
	mustClose(t, j)
}

func TestWaitIsBounded(t *testing.T) {
	j, _ := mustOpen(t, t.TempDir(), Options{})
	defer mustClose(t, j)
	if err := j.Wait(bounded(t), 7); !errs.Is(err, errs.Internal) {
		t.Error(err)
	}
	if _, err := j.Append(make([]byte, maxRecord+1)); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	j, _ := mustOpen(f, dir, Options{})
	fill(f, j, 8)
	mustClose(f, j)
	b, err := os.ReadFile(filepath.Join(dir, segmentName(1, 1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-5])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, segmentName(1, 1)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, rec, err := Open(dir, Options{})
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		mustClose(t, j)
		again, err := Load(dir)
		if err != nil || again.Last() != rec.Last() || again.Cut != 0 {
			t.Fatalf("opened again: %v", err)
		}
	})
}

// TestRecent: what is in memory is what is on disk, and only the newest of it.
func TestRecent(t *testing.T) {
	j, _ := mustOpen(t, t.TempDir(), Options{Recent: 1000})
	defer mustClose(t, j)
	fill(t, j, 200)
	for seq := uint64(1); seq <= 201; seq++ {
		recs, ok := j.Recent(seq, 300)
		if ok != (seq > 160) && (seq < 150 || seq > 190) || seq == 201 && len(recs) > 0 {
			t.Errorf("from record %d: %d records, %v", seq, len(recs), ok)
		}
		for i, r := range recs {
			if want := val(seq + uint64(i)); !bytes.Equal(r, want) {
				t.Fatalf("record %d is %q, want %q", seq+uint64(i), r, want)
			}
		}
	}
}
