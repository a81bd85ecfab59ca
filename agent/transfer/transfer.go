package transfer

import (
	"context"
	"hash/crc32"
	"log/slog"
	"net"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// ID names an object.
type ID = wire.ObjectID

// Meta is what there is to know of an object besides its bytes.
type Meta struct {
	Size int64
	Form uint32
}

// Store is where this node's objects are.
type Store interface {
	// Open gives a complete object; it stays where it is until Close. An error of kind
	// NotFound says that it is not here.
	Open(id ID) (Object, error)
	// Create makes room for an object that is to come. An error of kind Exists says that
	// it is here already.
	Create(ctx context.Context, id ID, m Meta) (Writer, error)
}

// Object is a complete object.
type Object interface {
	Meta() Meta
	Bytes() []byte
	Close()
}

// Writer is an object on its way.
type Writer interface {
	Bytes() []byte // of Meta.Size
	Seal() error   // it is complete
	Abort()
}

// Dial opens a stream of kind wire.StreamObjects to a node (Welcome.Number). lane spreads
// streams over connections where there are several.
type Dial func(ctx context.Context, node uint32, lane int) (net.Conn, error)

// Config of a Transfer. Zero values are what production uses.
type Config struct {
	Store Store
	Dial  Dial
	Log   *slog.Logger

	Fanout  int           // nodes that are given one object at a time; 2
	Streams int           // of one pull; 4
	Uploads int           // ranges that are sent at a time; 16
	Range   int64         // bytes of a range; by size, 4 to 16 MiB
	Stall   time.Duration // without a byte a source is given up; 10 s
	Pause   time.Duration // before all sources are tried again, doubling; 200 ms
	Rounds  int           // so often are all sources tried; 4
}

const (
	minRange = 4 << 20
	maxRange = 16 << 20
	// planSize is from which size on readers are planned as a tree: smaller ones are
	// sent in less time than a plan takes.
	planSize = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Transfer is a node's part in moving objects.
type Transfer struct {
	cfg  Config
	ctx  context.Context // of all pulls
	stop context.CancelFunc
	wg   sync.WaitGroup
	send chan struct{} // a place in it is a range that is being sent

	mu    sync.Mutex
	pulls map[ID]*pull // guarded by mu
	fans  map[ID]*fan  // guarded by mu
	stats Stats        // guarded by mu
}

// Stats counts since the start.
type Stats struct {
	Pulled, Sent             int64 // bytes
	Pulls, Failed, Redirects int64
	Active                   int
}

// New makes a Transfer.
func New(cfg Config) *Transfer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&cfg.Fanout, 2)
	def(&cfg.Streams, 4)
	def(&cfg.Uploads, 16)
	def(&cfg.Rounds, 4)
	if cfg.Stall == 0 {
		cfg.Stall = 10 * time.Second
	}
	if cfg.Pause == 0 {
		cfg.Pause = 200 * time.Millisecond
	}
	t := &Transfer{cfg: cfg, send: make(chan struct{}, cfg.Uploads), pulls: map[ID]*pull{}, fans: map[ID]*fan{}}
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t
}

// Close gives up all pulls and waits for them. Streams that are being served end with
// their sessions.
func (t *Transfer) Close() {
	t.stop()
	t.wg.Wait()
}

// Stats gives the counts so far.
func (t *Transfer) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Active = len(t.pulls)
	return s
}

// Pull brings an object here, from any of the given nodes. It returns when the object is
// complete in the store, or why it cannot be had. Calls for the same object share one
// transfer, which goes on while one of them waits.
func (t *Transfer) Pull(ctx context.Context, id ID, from []uint32) error {
	t.mu.Lock()
	p := t.pulls[id]
	if p != nil && p.waiters == 0 {
		// It is being given up; a new one begins after it.
		t.mu.Unlock()
		select {
		case <-p.done:
			return t.Pull(ctx, id, from)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if t.ctx.Err() != nil {
		t.mu.Unlock()
		return errs.New(errs.Cancelled, "the agent ends")
	}
	fresh := p == nil
	if fresh {
		p = newPull(t, id)
		t.pulls[id] = p
		t.stats.Pulls++
	}
	p.waiters++
	p.add(from)
	if fresh { // only now: without sources it would fail
		t.wg.Go(p.run)
	}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if p.waiters--; p.waiters == 0 {
			p.cancel()
		}
	}()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
