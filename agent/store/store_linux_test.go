package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm/objects"
	"launcher/wire"
)

const mib = 1 << 20

func TestPutGetFree(t *testing.T) {
	n := newNode(t, 256*mib, nil)
	if u := n.s.Usage(); u.Used != 0 || u.Segments != 0 {
		t.Errorf("memory is taken before anybody asked: %+v", u)
	}
	p, q := n.program(1, "3"), n.program(2, "3")
	small, big := p.mustPut(100_000), p.mustPut(40*mib)
	for _, id := range []wire.ObjectID{small, big} {
		p.mustSee(id)
		q.mustSee(id)
		if at, _, form := n.s.Where(id); at != InMemory || form != 2 {
			t.Errorf("object %s is at %d with form %d", id, at, form)
		}
	}
	// The agent's own view.
	b, form, release, err := n.s.Read(big)
	if err != nil || form != 2 || check(b, big) != nil {
		t.Fatalf("the agent reads form %d, %v", form, err)
	}
	// What is pinned stays when it is freed, and nobody new can pin it.
	held, pin, err := q.get(small)
	if err != nil || held == nil {
		t.Fatal(err)
	}
	for _, i := range n.s.List() {
		if i.ID == small && (len(i.Pinned) != 1 || i.Pinned[0] != 2 || i.Producer != 1 || i.Job != "3") {
			t.Errorf("listed as %+v", i)
		}
	}
	n.s.Free([]wire.ObjectID{small, big})
	if b, _, _ := p.get(small); b != nil {
		t.Error("pinned an object that is freed")
	}
	time.Sleep(3 * heldEvery) // sleep: so that a store which let go of it would have the time
	if u := n.s.Usage(); u.Live != 40*mib+100_000 {
		t.Errorf("%d bytes of objects are held, want those pinned", u.Live)
	}
	if err := check(held, small); err != nil {
		t.Error(err)
	}
	q.pins.Release(pin)
	release()
	n.await("all objects gone", func() bool { return n.s.Usage().Live == 0 })
	// The room is used again: nothing new is taken.
	used := n.s.Usage().Used
	p.mustSee(p.mustPut(100_000))
	p.mustSee(p.mustPut(40 * mib))
	if now := n.s.Usage().Used; now != used {
		t.Errorf("putting the same again took %d bytes more", now-used)
	}
	n.s.Detach(1)
	n.s.Detach(2)
	for _, i := range n.s.List() {
		n.s.Free([]wire.ObjectID{i.ID})
	}
	n.await("all memory given back", func() bool { return n.s.Usage().Used == 0 && n.keeper.count() == 1 })
}

func TestSealIsChecked(t *testing.T) {
	n := newNode(t, 64*mib, nil)
	p := n.program(1, "")
	n.program(2, "")
	a, _, err := p.alloc(1000)
	if err != nil {
		t.Fatal(err)
	}
	id := p.nextID()
	if err := n.s.Seal(1, id, 0, a.Segment, a.Offset, 1000); err != nil {
		t.Fatal(err)
	}
	if err := n.s.Seal(1, id, 0, a.Segment, a.Offset, 1000); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	b, _, err := p.alloc(1000)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"another's segment": n.s.Seal(2, p.nextID(), 0, a.Segment, b.Offset, 1000),
		"no segment":        n.s.Seal(1, p.nextID(), 0, a.Segment+9, b.Offset, 1000),
		"an odd offset":     n.s.Seal(1, p.nextID(), 0, a.Segment, b.Offset+1, 1000),
		"a negative offset": n.s.Seal(1, p.nextID(), 0, a.Segment, -64, 1000),
		"no size":           n.s.Seal(1, p.nextID(), 0, a.Segment, b.Offset, 0),
		"a huge size":       n.s.Seal(1, p.nextID(), 0, a.Segment, b.Offset, 1<<62),
		"the end":           n.s.Seal(1, p.nextID(), 0, a.Segment, 2*mib-64, 65),
		"an overlap":        n.s.Seal(1, p.nextID(), 0, a.Segment, a.Offset+512, 1000),
		"an overlap before": n.s.Seal(1, p.nextID(), 0, a.Segment, a.Offset, 64),
		"no id":             n.s.Seal(1, wire.ObjectID{}, 0, a.Segment, b.Offset, 1000),
	} {
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want kind invalid", what, err)
		}
	}
	// Written once more by another attempt: the first stays, the room comes back.
	if err := n.s.Seal(1, id, 0, b.Segment, b.Offset, 1000); !errs.Is(err, errs.Exists) {
		t.Errorf("the same object in another place: %v", err)
	}
	g, wait, err := n.s.Space(1, "", 1000)
	if err != nil || wait || len(g.Extents) != 1 || g.Extents[0] != b {
		t.Errorf("got %+v, %v, %v; want %+v back", g, wait, err, b)
	}
}

// Readers pin and look while objects are freed and their room is written again.
func TestReadersNeverSeeFreedBytes(t *testing.T) {
	n := newNode(t, 64*mib, nil)
	p := n.program(1, "")
	var current [8]atomic.Pointer[wire.ObjectID]
	var seen, missed atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for r := range 3 {
		q := n.program(uint32(10+r), "")
		wg.Go(func() {
			for ctx.Err() == nil {
				id := current[rand.IntN(len(current))].Load()
				if id == nil {
					continue
				}
				b, pin, err := q.get(*id)
				if errs.Is(err, errs.NotFound) { // the segment went before it was mapped
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if b == nil {
					missed.Add(1)
					continue
				}
				for range 3 {
					if err := check(b, *id); err != nil {
						t.Error(err)
						return
					}
				}
				q.pins.Release(pin)
				seen.Add(1)
			}
		})
	}
	begin := time.Now()
	for enough := false; !enough && !t.Failed(); {
		enough = time.Since(begin) > bound || seen.Load() >= 1000 && time.Since(begin) > 2*time.Second
		for i := range current {
			id, err := p.put(int64(64<<10 + rand.IntN(256<<10)))
			if err != nil {
				t.Fatal(err)
			}
			if old := current[i].Swap(&id); old != nil {
				n.s.Free([]wire.ObjectID{*old})
			}
		}
	}
	stop()
	wg.Wait()
	if seen.Load() < 1000 {
		t.Errorf("only %d looks at objects", seen.Load())
	}
	t.Logf("%d looks, %d came too late", seen.Load(), missed.Load())
}

func TestLimits(t *testing.T) {
	n := newNode(t, 32*mib, func(c *Config) { c.JobLimit = 16 * mib })
	p := n.program(1, "a")
	if _, err := p.put(33 * mib); !errs.Is(err, errs.Exhausted) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("more than there is: %v", err)
	}
	if _, err := p.put(17 * mib); !errs.Is(err, errs.Exhausted) {
		t.Errorf("more than a job may have: %v", err)
	}
	ids := []wire.ObjectID{p.mustPut(8 * mib), p.mustPut(7 * mib)}
	for _, id := range ids { // pinned: nothing can make room
		if b, _, err := p.get(id); b == nil {
			t.Fatal(err)
		}
	}
	if _, wait, err := n.s.Space(1, "a", 8*mib); !wait || err != nil {
		t.Fatalf("a job over its part got room, or %v", err)
	}
	q := n.program(2, "b")
	q.mustSee(q.mustPut(8 * mib)) // another job has its own
	err := n.s.Full(1, 8*mib)
	if !errs.Is(err, errs.Exhausted) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("full: %v", err)
	}
	t.Log(err)
}

// The kernel's room is asked for before it is taken.
func TestRoomOfTheMachine(t *testing.T) {
	var room atomic.Int64
	room.Store(margin + mib)
	n := newNode(t, 64*mib, func(c *Config) { c.Room = room.Load })
	p := n.program(1, "")
	p.mustPut(900 << 10) // less than a segment usually has
	if used := n.s.Usage().Used; used > mib {
		t.Errorf("%d bytes were taken of %d", used, mib)
	}
	done := make(chan error, 1)
	go func() { _, err := p.put(8 * mib); done <- err }()
	n.await("it waits", func() bool {
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		return !n.s.clients[1].tight.IsZero()
	})
	room.Store(1 << 40)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSpillAndRestore(t *testing.T) {
	n := newNode(t, 64*mib, nil)
	p, q := n.program(1, "9"), n.program(2, "9")
	var ids []wire.ObjectID
	for range 40 { // 160 MiB through 64
		ids = append(ids, p.mustPut(4*mib))
	}
	u := n.s.Usage()
	if u.Used > u.Limit || u.InFiles < 20 {
		t.Errorf("%+v", u)
	}
	if at, size, form := n.s.Where(ids[0]); at != InFile || size != 4*mib || form != 2 {
		t.Errorf("the oldest object is at %d, %d bytes, form %d", at, size, form)
	}
	for _, id := range ids {
		if at, _, _ := n.s.Where(id); at == InFile {
			n.s.Restore(id)
			n.s.Restore(id) // once is enough
			n.await("restored", func() bool { return saw(n, func(e Restored) bool { return e.ID == id && e.Err == nil }) })
		}
		q.mustSee(id)
	}
	for _, i := range n.s.List() {
		if i.Job != "9" || i.Producer != 1 {
			t.Errorf("listed as %+v", i)
		}
	}
	n.s.Free(ids)
	n.await("all gone", func() bool { u := n.s.Usage(); return u.Live == 0 && u.Spilled == 0 && u.Objects == 0 })
}

func TestDamagedFile(t *testing.T) {
	n := newNode(t, 32*mib, nil)
	p := n.program(1, "")
	var ids []wire.ObjectID
	for range 16 {
		ids = append(ids, p.mustPut(4*mib))
	}
	n.await("the first ones spilled", func() bool { return n.s.Usage().InFiles >= 3 })
	var gone []wire.ObjectID
	for _, id := range ids {
		files, _ := filepath.Glob(filepath.Join(n.dir, id.String()+"*"+suffix))
		if len(files) == 1 && len(gone) < 3 {
			gone = append(gone, id)
			spoil := []func(string) error{
				os.Remove,
				func(path string) error { return os.Truncate(path, 3*mib) },
				func(path string) error {
					f, err := os.OpenFile(path, os.O_RDWR, 0)
					if err != nil {
						return err
					}
					_, err = f.WriteAt([]byte{1}, 3*mib)
					return errors.Join(err, f.Close())
				},
			}[len(gone)-1]
			if err := spoil(files[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range gone {
		n.s.Restore(id)
		n.await("its loss is told", func() bool { return saw(n, func(e Lost) bool { return e.ID == id && errs.Is(e.Err, errs.Lost) }) })
		if at, _, _ := n.s.Where(id); at != Nowhere {
			t.Errorf("a lost object is at %d", at)
		}
	}
}

// A full disk: nothing is lost, who waits gets an error that says so, and it goes on when
// there is room. The limit on the size of files stands for the disk's end.
func TestFullDisk(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, 32*mib, nil)
	p := n.program(1, "")
	var ids []wire.ObjectID
	for range 6 {
		ids = append(ids, p.mustPut(4*mib))
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: mib, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() { _ = unix.Setrlimit(unix.RLIMIT_FSIZE, &old) })
	defer restore()
	if _, wait, err := n.s.Space(1, "", 20*mib); !wait || err != nil {
		t.Fatalf("room where there is none: %v", err)
	}
	n.await("the disk is found full", func() bool { return n.s.Usage().Disk != nil })
	err := n.s.Full(1, 20*mib)
	if !errs.Is(err, errs.Exhausted) || !errors.Is(err, unix.EFBIG) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("a full disk: %v", err)
	}
	t.Log(err)
	if files, _ := os.ReadDir(n.dir); len(files) > 0 {
		t.Errorf("parts of files are left")
	}
	for _, id := range ids {
		p.mustSee(id)
	}
	restore()
	ids = append(ids, p.mustPut(20*mib))
	p.mustSee(ids[6])
}

func TestCopiesAreEvicted(t *testing.T) {
	n := newNode(t, 32*mib, nil)
	p := n.program(1, "")
	make1 := func(k uint64, copied bool) wire.ObjectID {
		id := wire.NewObjectID(99, 1, k, 1)
		c, err := n.s.Create(t.Context(), id, 1, 8*mib, copied)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.s.Create(t.Context(), id, 1, 8*mib, copied); !errs.Is(err, errs.Exists) {
			t.Errorf("made twice: %v", err)
		}
		if b, _, _ := p.get(id); b != nil {
			t.Error("seen before it is sealed")
		}
		fill(c.Bytes(), id)
		if err := c.Seal(); err != nil {
			t.Fatal(err)
		}
		c.Abort() // nothing
		return id
	}
	first := make1(1, true)
	p.mustSee(first)
	for k := range 6 {
		make1(uint64(2+k), true)
	}
	n.await("the oldest copy is evicted", func() bool { return saw(n, func(e Evicted) bool { return e.ID == first }) })
	if at, _, _ := n.s.Where(first); at != Nowhere || n.s.Usage().InFiles > 0 {
		t.Errorf("an evicted copy is at %d, %d files", at, n.s.Usage().InFiles)
	}
	// One that is owned now is not dropped but spilled.
	own := make1(20, true)
	n.s.Own(own)
	for k := range 6 {
		make1(uint64(21+k), true)
	}
	n.await("it is spilled", func() bool { return n.s.Usage().InFiles > 0 }) // to ask where it is would count as a use
	if at, _, _ := n.s.Where(own); at != InFile {
		t.Errorf("one that is owned is at %d", at)
	}
	n.s.Restore(own)
	n.await("it is back", func() bool { return saw(n, func(e Restored) bool { return e.ID == own && e.Err == nil }) })
	p.mustSee(own)
	// One that is freed while it is made never comes to be; one given up leaves nothing.
	id := wire.NewObjectID(99, 1, 50, 1)
	c, err := n.s.Create(t.Context(), id, 1, mib, true)
	if err != nil {
		t.Fatal(err)
	}
	n.s.Free([]wire.ObjectID{id})
	if err := c.Seal(); !errs.Is(err, errs.NotFound) {
		t.Errorf("sealed though it was freed: %v", err)
	}
	if c, err = n.s.Create(t.Context(), id, 1, mib, true); err != nil {
		t.Fatal(err)
	}
	c.Abort()
	if _, _, _, err := n.s.Read(id); !errs.Is(err, errs.NotFound) {
		t.Errorf("given up, but it is there: %v", err)
	}
	// No room at all: an error within the bound.
	for _, i := range n.s.List() {
		_, _, release, err := n.s.Read(i.ID)
		if err == nil {
			defer release()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := n.s.Create(ctx, id, 1, 30*mib, true); !errs.Is(err, errs.Exhausted) {
		t.Errorf("no room: %v", err)
	}
}

// A producer's warm memory is taken back for others, and after a while anyway.
func TestWarmMemory(t *testing.T) {
	const warm = time.Second
	n := newNode(t, 64*mib, func(c *Config) { c.Warm = warm })
	p, q := n.program(1, ""), n.program(2, "")
	id := p.mustPut(40 * mib)
	n.s.Free([]wire.ObjectID{id})
	n.await("freed", func() bool { return n.s.Usage().Live == 0 })
	start := time.Now()
	q.mustSee(q.mustPut(40 * mib)) // fits only in what the other has warm
	if d := time.Since(start); d > bound {
		t.Errorf("it took %v to get a neighbour's warm memory", d)
	}
	if len(p.own) > 0 {
		t.Errorf("the neighbour still has %d segments", len(p.own))
	}
	if u := n.s.Usage(); u.Spilled > 0 {
		t.Errorf("something was spilled: %+v", u)
	}
	for _, i := range n.s.List() {
		n.s.Free([]wire.ObjectID{i.ID})
	}
	n.await("its own time is over", func() bool { return n.s.Usage().Used == 0 })
	if d := time.Since(start); d < warm {
		t.Errorf("warm memory was taken back after %v", d)
	}
}

// The agent is killed at any moment; the next one finds everything.
func TestRestart(t *testing.T) {
	// The first store takes no warm memory back, so that nothing moves while it is looked at.
	n := newNode(t, 64*mib, func(c *Config) { c.Warm = time.Hour })
	warm := func(c *Config) { c.Warm = time.Second }
	p, q := n.program(1, "5"), n.program(2, "6")
	ids := map[wire.ObjectID]bool{}
	for range 12 {
		ids[p.mustPut(4*mib)] = true
	}
	for range 5 {
		ids[q.mustPut(4*mib)] = true
	}
	n.await("some are spilled", func() bool { return n.s.Usage().InFiles > 2 })
	// An object that is pinned neither leaves memory nor, when it is freed, its place.
	pinNew := func(make func() wire.ObjectID) (wire.ObjectID, []byte, objects.Pin) {
		for range 20 {
			id := make()
			if b, k, err := q.get(id); err != nil {
				t.Fatal(err)
			} else if b != nil {
				return id, b, k
			}
			ids[id] = true // it has left already
		}
		t.Fatal("20 objects left memory before they could be pinned")
		panic("")
	}
	put := func() wire.ObjectID { return p.mustPut(4 * mib) }
	var copies uint64
	copied, _, copiedPin := pinNew(func() wire.ObjectID {
		copies++
		id := wire.NewObjectID(99, 1, copies, 1)
		c, err := n.s.Create(t.Context(), id, 3, mib, true)
		if err != nil {
			t.Fatal(err)
		}
		fill(c.Bytes(), id)
		if err := c.Seal(); err != nil {
			t.Fatal(err)
		}
		return id
	})
	for k := range copies - 1 {
		delete(ids, wire.NewObjectID(99, 1, k+1, 1))
	}
	freed, _, freedPin := pinNew(put)
	pinned, held, heldPin := pinNew(put)
	n.s.Free([]wire.ObjectID{freed, pinned})
	q.pins.Release(freedPin)
	n.await("nothing is on its way", func() bool {
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		for _, o := range n.s.objs {
			if o.state == leaving || o.state == restoring || o.views > 0 {
				return false
			}
		}
		for _, g := range n.s.segs {
			if len(g.live) == 0 && !g.asked.IsZero() {
				return false
			}
		}
		return len(n.s.reaping)+len(n.s.dying)+len(n.s.waiting()) == 0 && len(n.s.held) == 1 && n.s.live <= n.s.high()
	})
	before := n.s.Usage()
	n.s.mu.Lock()
	unclaimedBefore := len(n.s.clients[1].unclaimed)
	n.s.mu.Unlock()
	n.kill()
	if err := os.WriteFile(filepath.Join(n.dir, "stray"+suffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.open(64*mib, warm)
	u := n.s.Usage()
	if u.Objects != len(ids)+1 || u.Used != before.Used || u.Spilled != before.Spilled || u.Live != before.Live {
		t.Errorf("the next store has %+v, the one before %+v", u, before)
	}
	if got := n.s.Clients(); len(got) != 2 || got[0] != 1 || got[1] != 2 {
		t.Errorf("it knows clients %v", got)
	}
	n.s.mu.Lock()
	if got := len(n.s.clients[1].unclaimed); got != unclaimedBefore || got == 0 {
		t.Errorf("%d stretches are free for client 1, before %d", got, unclaimedBefore)
	}
	if !n.s.objs[copied].copied {
		t.Error("the copy is not known as one")
	}
	n.s.mu.Unlock()
	// Programs go on with what they have mapped.
	for _, k := range n.s.Clients() {
		if _, _, err := n.s.Attach(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := check(held, pinned); err != nil {
		t.Error(err)
	}
	q.pins.Release(heldPin)
	q.pins.Release(copiedPin)
	n.await("the pinned one is gone", func() bool {
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		return len(n.s.held)+len(n.s.dying)+len(n.s.reaping) == 0
	})
	for range 6 {
		ids[p.mustPut(4*mib)] = true
	}
	ids[copied] = true
	for id := range ids {
		n.await("seen", func() bool {
			b, k, err := q.get(id)
			if err == nil && b != nil {
				err = check(b, id)
				q.pins.Release(k)
			}
			if err != nil {
				t.Fatal(err)
			}
			at, _, _ := n.s.Where(id)
			if b == nil && at == InFile {
				n.s.Restore(id)
			}
			return b != nil || id == copied && at == Nowhere // evicted
		})
	}
	if _, err := os.Stat(filepath.Join(n.dir, "stray"+suffix)); err == nil {
		t.Error("a file of nobody is left")
	}
	n.s.Detach(1)
	n.s.Detach(2)
	for id := range ids {
		n.s.Free([]wire.ObjectID{id})
	}
	n.await("all given back", func() bool { return n.s.Usage().Used == 0 && n.keeper.count() == 1 })
}

// The number of a segment that is gone is not given to another one, by a later store
// either: a program may still have the old one mapped, and would read that.
func TestSegmentNumbersAreNotUsedAgain(t *testing.T) {
	n := newNode(t, 64*mib, nil)
	p, q := n.program(1, ""), n.program(2, "")
	old := p.mustPut(mib)
	q.mustSee(old) // maps it
	n.mu.Lock()
	delete(n.programs, 2) // which hears of nothing
	n.mu.Unlock()
	n.s.Free([]wire.ObjectID{old})
	n.s.Detach(1)
	n.await("the segment is let go of", func() bool {
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		return len(n.s.segs) == 0
	})
	n.kill()
	n.open(64*mib, nil)
	if _, _, err := n.s.Attach(2); err != nil {
		t.Fatal(err)
	}
	r := n.program(3, "")
	r.nextID() // its bytes are others than those of the old one
	q.mustSee(r.mustPut(mib))
	n.s.Detach(2)
	n.s.Detach(3)
	for _, i := range n.s.List() {
		n.s.Free([]wire.ObjectID{i.ID})
	}
	n.await("all given back", func() bool { return n.s.Usage().Used == 0 })
}

// A store that begins anew asks all programs to unmap what goes: which of them read a
// segment is not known any more.
func TestReadersAreAskedAfterRestart(t *testing.T) {
	n := newNode(t, 64*mib, nil)
	p, q := n.program(1, ""), n.program(2, "")
	id := p.mustPut(mib)
	q.mustSee(id)
	n.kill()
	n.open(64*mib, nil)
	n.s.Detach(1)
	n.s.Free([]wire.ObjectID{id})
	if _, _, err := n.s.Attach(2); err != nil {
		t.Fatal(err)
	}
	n.await("its reader unmaps it", func() bool { return n.s.Usage().Used == 0 })
	if len(q.maps) > 0 {
		t.Errorf("%d segments are still mapped", len(q.maps))
	}
}
