package store

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm/objects"
	"launcher/wire"
)

// A spilled object whose reader finds memory full of what others look at is not lost.
func TestRestoreWaitsForRoom(t *testing.T) {
	n := newNode(t, 32*mib, func(c *Config) { c.Patience = 300 * time.Millisecond })
	p := n.program(1, "")
	n.s.Name(1, "pid 77")
	cold := p.mustPut(8 * mib)
	var ids []wire.ObjectID
	var pins []objects.Pin
	for range 3 {
		id := p.mustPut(8 * mib)
		_, pin, err := p.get(id)
		if err != nil {
			t.Fatal(err)
		}
		ids, pins = append(ids, id), append(pins, pin)
	}
	other := p.mustPut(8 * mib) // the first makes room for it
	if at, _, _ := n.s.Where(cold); at != InFile {
		t.Fatalf("the one that nobody looks at is at %d", at)
	}
	_, pin, err := p.get(other)
	if err != nil {
		t.Fatal(err)
	}
	n.s.Restore(cold)
	var told error
	n.await("it is told that there is no room", func() bool {
		return saw(n, func(e Restored) bool { told = e.Err; return e.ID == cold && e.Err != nil })
	})
	if !errs.Is(told, errs.Exhausted) || !strings.Contains(told.Error(), "pid 77") || len(errs.HintsOf(told)) == 0 {
		t.Errorf("a full memory: %v", told)
	}
	t.Log(told)
	for _, pin := range append(pins, pin) {
		p.pins.Release(pin)
	}
	n.s.Free(ids)
	n.await("it is back", func() bool { n.s.Restore(cold); at, _, _ := n.s.Where(cold); return at == InMemory }) // again, after each patience
	p.mustSee(cold)
}

// What is gone counts as used until its readers have unmapped it, or are dead.
func TestReadersHoldMemory(t *testing.T) {
	for _, end := range []string{"unmapped", "dead"} {
		t.Run(end, func(t *testing.T) {
			n := newNode(t, 64*mib, nil)
			p, reader, other := n.program(1, ""), n.program(2, ""), n.program(3, "")
			n.s.Name(2, "pid 78")
			id := p.mustPut(40 * mib)
			reader.mustSee(id)
			reader.deaf = true
			n.s.Free([]wire.ObjectID{id})
			if _, wait, err := n.s.Space(3, "", 40*mib); !wait || err != nil {
				t.Fatalf("room that a reader has mapped is given: %v", err)
			}
			n.await("the reader is looked for", func() bool { return saw(n, func(e Overdue) bool { return e.Client == 2 }) })
			if err := n.s.Full(3, 40*mib); !strings.Contains(err.Error(), "still mapped: 40MiB by pid 78") {
				t.Errorf("full: %v", err)
			}
			if end == "dead" {
				n.s.Detach(2)
			} else {
				reader.deaf = false
				if _, _, err := n.s.Attach(2); err != nil { // it is asked again when it comes back
					t.Fatal(err)
				}
			}
			other.mustSee(other.mustPut(40 * mib))
		})
	}
}

// Much more than memory goes through it while readers keep some views and drop others:
// nothing of it stays accounted for.
func TestCyclesWithReaders(t *testing.T) {
	n := newNode(t, 64*mib, nil)
	var ps []*program
	for k := range uint32(3) {
		ps = append(ps, n.program(k+1, ""))
	}
	type view struct {
		p   *program
		id  wire.ObjectID
		pin objects.Pin
	}
	var held []view
	for k := range 60 {
		id := ps[k%3].mustPut(12 * mib)
		r := ps[(k+1)%3]
		b, pin, err := r.get(id)
		if err != nil || b == nil {
			t.Fatalf("object %d: %v", k, err)
		}
		held = append(held, view{r, id, pin})
		if len(held) > 2 {
			v := held[0]
			held = held[1:]
			v.p.pins.Release(v.pin)
			n.s.Free([]wire.ObjectID{v.id})
		}
		if u := n.s.Usage(); u.Used > u.Limit {
			t.Fatalf("%d of %d bytes are used", u.Used, u.Limit)
		}
	}
	for _, v := range held {
		v.p.pins.Release(v.pin)
		n.s.Free([]wire.ObjectID{v.id})
	}
	for _, p := range ps {
		n.s.Detach(p.num)
	}
	n.await("nothing is used", func() bool { return n.s.Usage().Used == 0 })
}

// No place to spill to: back-pressure, then an error that names the place.
func TestNoSpillDirectory(t *testing.T) {
	n := newNode(t, 32*mib, nil)
	if err := os.WriteFile(n.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := n.program(1, "")
	var ids []wire.ObjectID
	for range 6 {
		ids = append(ids, p.mustPut(4*mib))
	}
	if _, wait, err := n.s.Space(1, "", 20*mib); !wait || err != nil {
		t.Fatalf("room where there is none: %v", err)
	}
	n.await("it cannot be spilled", func() bool { return n.s.Usage().Disk != nil })
	if err := n.s.Full(1, 20*mib); !errors.Is(err, unix.ENOTDIR) || !strings.Contains(err.Error(), n.dir) {
		t.Errorf("no directory: %v", err)
	}
	for _, id := range ids {
		p.mustSee(id)
	}
	if err := os.Remove(n.dir); err != nil {
		t.Fatal(err)
	}
	p.mustSee(p.mustPut(20 * mib))
}
