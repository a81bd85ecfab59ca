package store

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/shm/objects"
	"launcher/wire"
)

// bound is how long a test waits for what is to come.
const bound = time.Minute

// keeper stands for the supervisor: it holds descriptors over the agent's death.
type keeper struct {
	mu  sync.Mutex
	fds map[string]*os.File
}

func again(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func (k *keeper) keep(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fds == nil {
		k.fds = map[string]*os.File{}
	}
	k.fds[name] = again(f)
	return nil
}

func (k *keeper) drop(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.fds[name]; f != nil {
		f.Close()
		delete(k.fds, name)
	}
}

func (k *keeper) handOver() map[string]*os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]*os.File{}
	for n, f := range k.fds {
		out[n] = again(f)
	}
	return out
}

func (k *keeper) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.fds)
}

// node is a store and the programs that use it.
type node struct {
	t      testing.TB
	s      *Store
	keeper keeper
	dir    string

	mu       sync.Mutex
	programs map[uint32]*program
	events   []Event
	changed  chan struct{}
}

func newNode(t testing.TB, limit int64, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir() + "/spill", programs: map[uint32]*program{}, changed: make(chan struct{})}
	n.open(limit, change)
	t.Cleanup(func() {
		n.s.Close()
		if files, _ := os.ReadDir(n.dir); len(files) > 0 {
			t.Errorf("%d files are left of the store", len(files))
		}
	})
	return n
}

func (n *node) open(limit int64, change func(*Config)) {
	n.t.Helper()
	cfg := Config{Dir: n.dir, Limit: limit, Keep: n.keeper.keep, Drop: n.keeper.drop, Notify: n.notify, Log: slog.New(slog.NewTextHandler(n.t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	kept := n.keeper.handOver()
	s, err := Open(cfg, kept)
	if err != nil {
		n.t.Fatal(err)
	}
	for name := range kept {
		n.t.Errorf("descriptor %s was not taken up", name)
	}
	n.s = s
}

// kill ends the store as the death of its agent does: nothing is told or removed.
func (n *node) kill() {
	n.s.cancel()
	n.s.wg.Wait()
}

func (n *node) notify(e Event) {
	if d, ok := e.(DropSegment); ok {
		n.mu.Lock()
		p := n.programs[d.Client]
		n.mu.Unlock()
		if p != nil {
			p.dropSegment(d)
		}
	}
	n.mu.Lock()
	n.events = append(n.events, e)
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
}

// await waits until cond holds; it is looked at after each event, and now and then.
func (n *node) await(what string, cond func() bool) {
	n.t.Helper()
	deadline := time.After(bound)
	for {
		n.mu.Lock()
		changed := n.changed
		n.mu.Unlock()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			n.t.Fatalf("not within %v: %s; %+v", bound, what, n.s.Usage())
		}
	}
}

func saw[E Event](n *node, match func(E) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if e, ok := e.(E); ok && match(e) {
			return true
		}
	}
	return false
}

// program is an SDK process as far as the store is concerned.
type program struct {
	n     *node
	num   uint32
	job   string
	index *objects.Index
	pins  *objects.Pins

	mu    sync.Mutex
	deaf  bool // does not unmap what it is asked to
	arena objects.Arena
	own   map[uint32][]byte
	maps  map[uint32][]byte
	count uint64
}

func (n *node) program(num uint32, job string) *program {
	n.t.Helper()
	p := &program{n: n, num: num, job: job, own: map[uint32][]byte{}, maps: map[uint32][]byte{}}
	index, pins, err := n.s.Attach(num)
	if err != nil {
		n.t.Fatal(err)
	}
	if p.index, err = objects.OpenIndex(again(index)); err != nil {
		n.t.Fatal(err)
	}
	if p.pins, err = objects.OpenPins(again(pins)); err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	n.programs[num] = p
	n.mu.Unlock()
	n.t.Cleanup(func() {
		p.mu.Lock() // the store lives, and may ask for a segment yet
		defer p.mu.Unlock()
		p.deaf = true
		p.index.Close()
		p.pins.Close()
		for _, m := range p.own {
			_ = unix.Munmap(m)
		}
		for _, m := range p.maps {
			_ = unix.Munmap(m)
		}
	})
	return p
}

func (p *program) dropSegment(d DropSegment) {
	p.mu.Lock()
	if p.deaf {
		p.mu.Unlock()
		return
	}
	for _, e := range d.Free {
		if err := p.arena.Free(e); err != nil {
			p.n.t.Errorf("with DropSegment: %v", err)
		}
	}
	ok := p.arena.Drop(d.Segment)
	if ok {
		_ = unix.Munmap(p.own[d.Segment])
		delete(p.own, d.Segment)
	} else if m := p.maps[d.Segment]; m != nil {
		ok = true
		_ = unix.Munmap(m)
		delete(p.maps, d.Segment)
	}
	p.mu.Unlock()
	if ok {
		if err := p.n.s.Dropped(p.num, d.Segment); err != nil {
			p.n.t.Errorf("dropped segment %d: %v", d.Segment, err)
		}
	}
}

// alloc gets room as an SDK does.
func (p *program) alloc(size int64) (e objects.Extent, fresh bool, err error) {
	deadline := time.Now().Add(bound)
	for {
		p.mu.Lock()
		e, fresh, ok := p.arena.Alloc(size)
		p.mu.Unlock()
		if ok {
			return e, fresh, nil
		}
		p.n.mu.Lock()
		changed := p.n.changed
		p.n.mu.Unlock()
		g, wait, err := p.n.s.Space(p.num, p.job, size)
		if err != nil {
			return e, false, err
		}
		if wait {
			select {
			case <-changed:
			case <-time.After(time.Until(deadline)):
				return e, false, p.n.s.Full(p.num, size)
			}
			continue
		}
		p.mu.Lock()
		if g.Segment != 0 {
			mem, err := unix.Mmap(int(g.File.Fd()), 0, int(g.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				p.mu.Unlock()
				return e, false, err
			}
			p.own[g.Segment] = mem
			p.arena.Add(g.Segment, g.Size)
		}
		for _, e := range g.Extents {
			if err := p.arena.Free(e); err != nil {
				p.n.t.Errorf("granted %+v: %v", e, err)
			}
		}
		p.mu.Unlock()
	}
}

func (p *program) nextID() wire.ObjectID {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	return wire.NewObjectID(7, p.num, p.count, wire.PutIndex)
}

// fill writes what belongs to an id, so that anybody can check it.
func fill(b []byte, id wire.ObjectID) {
	for i := 0; i+8 <= len(b); i += 512 {
		binary.LittleEndian.PutUint64(b[i:], binary.LittleEndian.Uint64(id[8:])+uint64(i))
	}
}

func check(b []byte, id wire.ObjectID) error {
	for i := 0; i+8 <= len(b); i += 512 {
		if got, want := binary.LittleEndian.Uint64(b[i:]), binary.LittleEndian.Uint64(id[8:])+uint64(i); got != want {
			return fmt.Errorf("object %s holds %#x at %d of %d, want %#x", id, got, i, len(b), want)
		}
	}
	return nil
}

func (p *program) put(size int64) (wire.ObjectID, error) {
	id := p.nextID()
	e, _, err := p.alloc(size)
	if err != nil {
		return id, err
	}
	p.mu.Lock()
	mem := p.own[e.Segment][e.Offset : e.Offset+size]
	p.mu.Unlock()
	fill(mem, id)
	return id, p.n.s.Seal(p.num, id, 2, e.Segment, e.Offset, size)
}

func (p *program) mustPut(size int64) wire.ObjectID {
	p.n.t.Helper()
	id, err := p.put(size)
	if err != nil {
		p.n.t.Fatal(err)
	}
	return id
}

// get pins an object and gives its bytes; nil: it is not in memory.
func (p *program) get(id wire.ObjectID) (b []byte, pin objects.Pin, err error) {
	e, pin, ok, err := p.pins.Get(p.index, id)
	if !ok || err != nil {
		return nil, 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	mem := p.own[e.Segment]
	if mem == nil {
		mem = p.maps[e.Segment]
	}
	if mem == nil {
		f, size, err := p.n.s.OpenSegment(p.num, e.Segment)
		if err != nil {
			return nil, 0, err
		}
		defer f.Close()
		if _, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			return nil, 0, fmt.Errorf("a reader can map segment %d for writing", e.Segment)
		}
		if mem, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return nil, 0, err
		}
		p.maps[e.Segment] = mem
	}
	b, err = e.Of(mem)
	return b, pin, err
}

// mustSee checks an object's bytes.
func (p *program) mustSee(id wire.ObjectID) {
	p.n.t.Helper()
	b, pin, err := p.get(id)
	if err == nil && b == nil {
		err = fmt.Errorf("object %s is not in memory", id)
	}
	if err == nil {
		err = check(b, id)
		p.pins.Release(pin)
	}
	if err != nil {
		p.n.t.Fatal(err)
	}
}
