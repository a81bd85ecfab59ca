package store

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/shm/objects"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Config of a Store.
type Config struct {
	Dir      string // for spilled objects, this store's alone; made when it is needed
	Limit    int64  // bytes of memory for all objects
	JobLimit int64  // of one job's programs; 0 = all
	// Keep leaves a descriptor with whoever outlives this process, Drop ends that.
	Keep func(name string, f *os.File) error
	Drop func(name string)
	Log  *slog.Logger
	// Notify is called by a goroutine of the store's own, one event after the other, with
	// no lock held.
	Notify func(Event)
	// Warm is how long an empty segment stays with its producer, which may fill it again;
	// 0 = 10 s.
	Warm time.Duration
	// Patience is how long a Restore waits for room; 0 = 60 s.
	Patience time.Duration
	Room     func() int64 // memory that may still be taken; nil = shm.Room
}

const (
	// margin is left to others when memory is taken.
	margin = 64 << 20
	// minObject is the least size that the index is made for: smaller values are inline.
	minObject = sdk.InlineMax
	maxIndex  = 1 << 21
	minIndex  = 1 << 16
)

// Store is a node's objects. Its methods may be called by any goroutine, also under a
// caller's lock: those that take long say so.
type Store struct {
	cfg     Config
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	once    sync.Once
	news    newsQueue
	tend    chan struct{} // room is short, or may have come
	reap    chan struct{} // objects are to go
	readers chan struct{} // a place in it is a file that is being read

	mu       sync.Mutex // guards what follows
	index    *objects.Writer
	shared   *os.File // the index, read-only
	segs     map[uint32]*segment
	parting  map[uint32]*segment // released, but mapped by readers
	clients  map[uint32]*client
	own      *client // the agent's: objects that it restored
	copies   *client // the agent's: objects from other nodes
	objs     map[wire.ObjectID]*object
	making   map[wire.ObjectID]*Creation
	jobs     map[string]int64 // bytes of segments
	used     int64            // bytes of all segments, those being made included
	coming   int64            // of those being made
	live     int64            // bytes of objects in memory
	spilled  int64
	spills   int
	number   uint32 // of the last spilled file
	tick     uint32
	turn     uint64 // counts who waits
	dying    []*object
	reaping  []*object
	held     []*object // dying, but pinned
	changed  chan struct{}
	spillErr error
	spillAt  time.Time // not before, after an error
}

type state uint8

const (
	sealed    state = iota // in memory
	leaving                // being spilled or evicted: the entry is marked
	dying                  // freed: goes when nobody has it pinned
	spilled                // in a file
	restoring              // in a file, on its way back
)

var stateNames = [...]string{"memory", "memory", "freed", "spilled", "restoring"}

// object is one of the node's.
type object struct {
	id     wire.ObjectID
	state  state
	form   uint32
	size   int64
	slot   uint32
	pin    objects.PinKey
	seg    *segment // nil: not in memory
	offset int64
	first  objects.Extent // where its producer wrote it
	copied bool           // from another node: evicted instead of spilled
	path   string         // of its file
	number uint32         // of its file
	job    string
	maker  uint32 // client
	born   time.Time
	used   uint32    // tick
	views  int       // by the agent itself
	wanted bool      // leaving: somebody asked for it
	doomed bool      // freed while it could not go
	pinned time.Time // when it was found pinned, which makes it no victim for a while
}

func (o *object) extent() objects.Extent {
	return objects.Extent{Segment: o.seg.n, Offset: o.offset, Length: objects.RoundUp(o.size)}
}

// Open takes up what an earlier agent kept, or begins with nothing. Descriptors of its
// own are taken out of kept.
func Open(cfg Config, kept map[string]*os.File) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Warm <= 0 {
		cfg.Warm = 10 * time.Second
	}
	if cfg.Patience <= 0 {
		cfg.Patience = time.Minute
	}
	if cfg.Keep == nil {
		cfg.Keep = func(string, *os.File) error { return nil }
	}
	if cfg.Drop == nil {
		cfg.Drop = func(string) {}
	}
	if cfg.Room == nil {
		cfg.Room = shm.Room
	}
	if cfg.Limit <= 0 || cfg.Dir == "" {
		return nil, errs.New(errs.Invalid, "object memory of %d bytes, spilling to %q", cfg.Limit, cfg.Dir)
	}
	if cfg.JobLimit <= 0 || cfg.JobLimit > cfg.Limit {
		cfg.JobLimit = cfg.Limit
	}
	s := &Store{cfg: cfg, tend: make(chan struct{}, 1), reap: make(chan struct{}, 1), segs: map[uint32]*segment{}, parting: map[uint32]*segment{}, clients: map[uint32]*client{},
		readers: make(chan struct{}, 4), objs: map[wire.ObjectID]*object{}, making: map[wire.ObjectID]*Creation{}, jobs: map[string]int64{}, changed: make(chan struct{})}
	s.news.more = make(chan struct{}, 1)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.own = &client{n: ownClient, segs: map[uint32]*segment{}, arena: &objects.Arena{}}
	s.copies = &client{n: copyClient, segs: map[uint32]*segment{}, arena: &objects.Arena{}}
	if err := s.takeUp(kept); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// start sets the store going. It does nothing by itself, and tells nothing, before it is
// first used: whoever opened it may have to make ready for that.
func (s *Store) start() {
	s.once.Do(func() {
		s.wg.Go(s.reaper)
		s.wg.Go(s.tender)
		s.wg.Go(func() { s.news.deliver(s.ctx, s.cfg.Notify) })
		kick(s.tend)
		kick(s.reap)
	})
}

// Close ends the store and everything in it, its files included. Nobody may use what
// Read or Create gave.
func (s *Store) Close() {
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segs {
		g.close()
	}
	for _, c := range s.clients {
		_ = c.pins.Close()
	}
	_ = s.shared.Close()
	_ = s.index.Close()
	for _, o := range s.objs {
		if o.path != "" {
			_ = os.Remove(o.path)
		}
	}
	files, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*"+part))
	for _, f := range files {
		_ = os.Remove(f)
	}
	_ = os.Remove(s.cfg.Dir) // if nothing else is in it
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// broadcast wakes the Creates that wait. mu must be held.
func (s *Store) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// use notes that an object is used now. mu must be held.
func (s *Store) use(o *object) {
	s.tick++
	o.used = s.tick
	s.index.Touch(o.slot, s.tick)
}

// Usage is what there is.
type Usage struct {
	Limit    int64
	Used     int64 // bytes of memory taken, warm segments included
	Live     int64 // bytes of objects in memory
	Spilled  int64 // bytes in files
	Objects  int
	InFiles  int
	Segments int
	Jobs     map[string]int64 // bytes of memory by job
	Disk     error            // why nothing can be spilled now
}

// Usage gives the counts of this moment.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Limit: s.cfg.Limit, Used: s.used, Live: s.live, Spilled: s.spilled, Objects: len(s.objs), InFiles: s.spills,
		Segments: len(s.segs), Jobs: map[string]int64{}, Disk: s.spillErr}
	for j, n := range s.jobs {
		if n > 0 {
			u.Jobs[j] = n
		}
	}
	return u
}

// Place is where an object is, as Where says.
type Place uint8

const (
	Nowhere  Place = iota
	InMemory       // programs can pin it
	InFile         // Restore brings it back
)

// Where says where an object is. It counts as a use: one that was about to be spilled is
// kept.
func (s *Store) Where(id wire.ObjectID) (p Place, size int64, form byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objs[id]
	if o == nil || o.doomed {
		return Nowhere, 0, 0
	}
	switch o.state {
	case sealed:
		s.use(o)
		return InMemory, o.size, byte(o.form)
	case leaving:
		o.wanted = true
		s.use(o)
		return InMemory, o.size, byte(o.form)
	case spilled, restoring:
		return InFile, o.size, byte(o.form)
	}
	return Nowhere, 0, 0
}

// Info is what there is to say of an object.
type Info struct {
	ID       wire.ObjectID
	Size     int64
	State    string
	Copy     bool     // of an object from another node
	Pinned   []uint32 // clients that have it in use
	Producer uint32   // client; 0 = the agent
	Job      string
	Age      time.Duration // on this node
}

// List gives all objects, in no order. It takes a while when there are many.
func (s *Store) List() []Info {
	pins := map[objects.PinKey][]uint32{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, c := range s.clients {
		c.pins.Scan(func(k objects.PinKey) {
			if p := pins[k]; len(p) == 0 || p[len(p)-1] != n {
				pins[k] = append(p, n)
			}
		})
	}
	now := time.Now()
	out := make([]Info, 0, len(s.objs))
	for _, o := range s.objs {
		i := Info{ID: o.id, Size: o.size, State: stateNames[o.state], Copy: o.copied, Producer: o.maker, Job: o.job, Age: now.Sub(o.born)}
		if o.seg != nil {
			i.Pinned = pins[o.pin]
		}
		out = append(out, i)
	}
	return out
}
