package agent

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"launcher/agent/core"
	"launcher/agent/detect"
	"launcher/agent/store"
	"launcher/agent/tasks"
	"launcher/agent/workers"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// sdkServer is the shell around the tasks' reactor: the conversations with drivers and
// workers, the log, what the reactor wants done.
//
// Whoever has something for the reactor (a reader of a connection, the pool of workers,
// the store) takes the agent's lock, tells it, and turns: records are written, effects
// performed, frames put into the buffers of their clients, the lock let go, the buffers
// written. Nothing is handed to another goroutine on that way.
type sdkServer struct {
	a     *agent
	ctx   context.Context // until this agent ends
	end   context.CancelFunc
	core  *tasks.Core   // guarded by a.mu
	log   *memoryLog    // guarded by a.mu
	store *store.Store  // has a lock of its own
	poke  chan struct{} // time is to be looked at soon
	named chan struct{} // closed when the node has its number

	clients    map[uint32]*sdkClient // guarded by a.mu
	programs   *programs
	dirs       *dirs
	dirty      []*sdkClient                     // with frames to write; guarded by a.mu
	answers    []given                          // of this turn; guarded by a.mu
	asking     []*sdkClient                     // for room, in frames of this turn; guarded by a.mu
	wanted     bool                             // room was given back that the core waits for; guarded by a.mu
	resting    bool                             // nothing runs, so time is looked at seldom; guarded by a.mu
	number     uint32                           // guarded by a.mu
	names      map[wire.ObjectID]wire.ActorName // of actors of this node; guarded by a.mu
	groupWaits map[wire.GroupID][]*groupWait    // guarded by a.mu
	told       bool                             // the head knows them; guarded by a.mu
	ready      bool                             // all parts of the agent are there; guarded by a.mu
	parked     chan struct{}                    // closed when drivers may be read from again; guarded by a.mu
	failed     error                            // the log cannot be written; guarded by a.mu
	broken     chan error                       // that, for the agent
	wg         sync.WaitGroup

	oom    *oomWatch // guarded by a.mu
	peers  sdkPeers
	backMu sync.Mutex
	backs  map[wire.ObjectID][]chan error // who waits for objects from disk; guarded by backMu

	logMu   sync.Mutex
	drivers map[string][]*sdkConn // by job, for output; guarded by logMu
}

// given is an answer to a client. It proves that the frames before the question were taken,
// so it is written after what came of them has been written down.
type given struct {
	to   *sdkClient
	body []byte
}

// sdkClient is a driver or worker, connected or expected back.
type sdkClient struct {
	sdkRecord
	conn    *sdkConn // nil: away
	control *control // of workers
	dirty   bool
	asking  int // questions that are being answered
	spaces  []spaceWait
	gone    chan struct{} // of workers: closed when the process has ended
	end     workers.End   // before gone is closed
	starved string        // and how, if it was killed for want of memory
}

// sdkRecord is what is kept of a client for the next agent.
type sdkRecord struct {
	ID     uint32
	Kind   int
	Nonce  []byte
	Token  string // of workers
	Job    string
	Name   string
	Proc   string
	PID    int
	Start  uint64 // of drivers: with PID it names the process for good
	Python bool
}

func newSDKServer(a *agent) *sdkServer {
	s := &sdkServer{a: a, clients: map[uint32]*sdkClient{}, programs: &programs{a: a, of: map[[2]string]*program{}}, dirs: &dirs{a: a, of: map[dirKey]*dir{}, told: map[dirKey]bool{}}, names: map[wire.ObjectID]wire.ActorName{}, groupWaits: map[wire.GroupID][]*groupWait{}, drivers: map[string][]*sdkConn{}, named: make(chan struct{}), poke: make(chan struct{}, 1), resting: true, broken: make(chan error, 1), parked: make(chan struct{}),
		peers: sdkPeers{out: map[uint32]*peerOut{}, in: map[uint32]*peerIn{}, borrows: map[uint32]*borrow{}, logs: map[string][]*peerWriter{}, copying: map[wire.ObjectID][]chan string{}}, backs: map[wire.ObjectID][]chan error{}}
	s.oom = newOOMWatch(func() int64 { return detect.OOMKills("/") })
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// open takes up what an earlier agent left, or begins.
func (s *sdkServer) open(ctx context.Context) (err error) {
	limit, err := objectMemory(s.a.cfg.ObjectMemory, s.a.total.Memory)
	if err != nil {
		return err
	}
	s.a.fdMu.Lock()
	s.store, err = store.Open(store.Config{
		Dir: s.spillDir(), Limit: limit, Log: s.a.log, Notify: s.storeEvent,
		Keep: func(name string, f *os.File) error { return s.a.super.StoreFD(context.WithoutCancel(ctx), name, f) },
		Drop: func(name string) { _ = s.a.super.DropFD(name) },
	}, s.a.fds)
	s.a.fdMu.Unlock()
	if err != nil {
		return err
	}
	s.core = tasks.New(tasks.Config{Node: s.a.cfg.Node, Cores: int(max(1, s.a.total.CPU/wire.Unit)), Unread: s.unread}, room{s}, memory{s.store})
	s.answerQueries()
	s.numbered(s.a.core.State().Number()) // ids in the log are of that number
	return s.restore(ctx)
}

// numbered tells which life of the node this is, once the head has said so. a.mu is held.
func (s *sdkServer) numbered(n uint32) {
	if n != 0 && s.number == 0 {
		s.number = n
		s.core.SetNumber(n)
		close(s.named)
	}
}

// turn tells the reactor something and does what comes of it.
func (s *sdkServer) turn(tell func(now int64)) {
	s.a.mu.Lock()
	now := s.a.clock.Now()
	tell(now)
	dirty := s.settle(now)
	s.a.mu.Unlock()
	for _, c := range dirty {
		c.flush()
	}
}

// interrupt has a worker read what it is to cancel, once the frame is written. Go
// workers read all the time. a.mu is held.
func (s *sdkServer) interrupt(id uint32) {
	if cl := s.clients[id]; cl == nil || !cl.Python || cl.conn == nil {
		return
	}
	s.wg.Go(func() {
		s.a.mu.Lock() // the turn that wrote the frame is over
		cl := s.clients[id]
		var c *sdkConn
		if cl != nil {
			c = cl.conn
		}
		s.a.mu.Unlock()
		if c != nil {
			c.flush()
			s.a.workers.Interrupt(id)
		}
	})
}

// settle writes down what the reactor decided and does it. a.mu is held; the clients are
// to be flushed after it. What it decides while the agent is put together (the store speaks
// early) waits for resume: it may want parts that are not there yet.
func (s *sdkServer) settle(now int64) []*sdkConn {
	if !s.ready {
		return nil
	}
	out := s.core.Take(now)
	s.a.core.Crowded(s.core.Crowded())
	if p, changed := s.core.Programs(); changed {
		s.a.events.push(core.ProgramsChanged{Programs: p})
	}
	if len(out.Records) > 0 && s.failed == nil {
		if s.failed = s.log.append(out.Records); s.failed != nil {
			s.a.log.Error("tasks cannot be written down; this agent ends", "err", s.failed)
			s.broken <- s.failed
		}
	}
	if s.failed != nil { // nothing may be done that the next agent does not know of
		s.core.Sent()
		return nil
	}
	for _, x := range out.Sends {
		if c := s.clients[x.Client]; c != nil && c.conn != nil {
			c.conn.put(x.Frames)
			s.mark(c)
		}
	}
	for _, x := range s.answers {
		if x.to.conn != nil {
			x.to.conn.putFrame(sdk.MsgAnswer, x.body)
			s.mark(x.to)
		}
	}
	s.answers = s.answers[:0]
	for _, e := range out.Effects {
		s.perform(e)
	}
	for _, c := range s.asking {
		s.giveSpace(c)
	}
	s.asking = s.asking[:0]
	s.syncBorrows()
	for _, x := range out.Sends {
		if s.clients[x.Client] == nil {
			s.sendPeer(x.Client, x.Frames)
		}
	}
	s.core.Sent()
	if s.log.long() {
		s.compact()
	}
	if s.resting && s.busy() {
		s.hurry()
	}
	if s.wanted {
		s.wanted = false
		s.a.events.push(core.Flush{})
	}
	if !s.core.Full() {
		s.unpark()
	}
	conns := make([]*sdkConn, 0, len(s.dirty))
	for _, c := range s.dirty {
		if c.dirty = false; c.conn != nil {
			conns = append(conns, c.conn)
		}
	}
	s.dirty = s.dirty[:0]
	return conns
}

// unread is how much a client has not taken yet of what was written for it. a.mu is held.
func (s *sdkServer) unread(client uint32) int {
	if c := s.clients[client]; c != nil && c.conn != nil {
		return c.conn.waiting()
	}
	return 0
}

// mark notes that a client has frames to be written. a.mu is held.
func (s *sdkServer) mark(c *sdkClient) {
	if !c.dirty {
		c.dirty = true
		s.dirty = append(s.dirty, c)
	}
}

// unpark lets drivers be read from again. a.mu is held.
func (s *sdkServer) unpark() {
	close(s.parked)
	s.parked = make(chan struct{})
}

// perform does what the reactor wants. a.mu is held.
func (s *sdkServer) perform(e tasks.Effect) {
	switch e := e.(type) {
	case tasks.StartWorker:
		s.startWorker(e)
	case tasks.StopWorker:
		s.stopWorker(e)
	case tasks.Interrupt:
		s.interrupt(e.ID)
	case tasks.Free:
		s.store.Free(e.IDs)
	case tasks.Withdraw:
		s.withdraw(e)
	case tasks.ActorOver:
		s.actorOver(e.ID)
		s.a.events.push(core.ActorsChanged{Told: wire.ActorTell{Over: []wire.ObjectID{e.ID}}})
	case tasks.Will:
		s.a.events.push(core.ActorsChanged{Told: wire.ActorTell{Made: []wire.ActorWill{e.ActorWill}}})
	case tasks.NoWill:
		s.tell(e.Job, e.Why)
	case tasks.JobOver:
		s.a.workers.EndJob(e.Job)
		s.programs.forget(e.Job)
		s.dirs.forget(e.Job)
	default:
		s.remoteEffect(e)
	}
}

// roomGiven: the core has given room back that tasks may want.
func (s *sdkServer) roomGiven() { s.turn(func(int64) {}) }

// leaving tells all programs that their node does.
func (s *sdkServer) leaving(why string) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	for _, c := range s.clients {
		if c.conn != nil {
			s.refuse(c.conn, errs.New(errs.Cancelled, "node %s leaves: %s", s.a.cfg.Node, why))
		}
	}
}

// close ends all conversations; the programs live on and come back to the next agent.
func (s *sdkServer) close() {
	s.end()
	s.a.mu.Lock()
	for _, c := range s.clients {
		if c.conn != nil {
			c.conn.hangUp()
		}
	}
	s.unpark()
	s.a.mu.Unlock()
	s.wg.Wait()
}

// shut lets go of the objects; when the node leaves, of their files too.
func (s *sdkServer) shut(why error) {
	if why == errLeft {
		s.store.Close()
	}
}

// room is the node's resources for the reactor: those of the core. a.mu is held whenever
// it is called.
type room struct{ s *sdkServer }

func (r room) Take(now int64, who core.Who, need wire.Resources, time int64) (core.Slot, bool) {
	s, ok := r.s.a.core.TakeRoomFor(now, who, need, time)
	r.s.wanted = r.s.a.core.Owed() || r.s.wanted
	return s, ok
}
func (r room) Claim(now int64, all []core.Claim) { r.s.a.core.Claim(now, all) }
func (r room) Before(a, b core.Who) int          { return r.s.a.core.Before(a, b) }
func (r room) Why(now int64, w core.Who, need wire.Resources) string {
	return r.s.a.core.WhyNot(now, w, need)
}
func (r room) Contended() bool { return r.s.a.core.Contended() }
func (r room) TakeGroup(s *wire.Strategy, need wire.Resources) (core.Slot, bool) {
	return r.s.a.core.TakeGroup(s, need)
}
func (r room) HasGroup(s *wire.Strategy) bool { return r.s.a.core.HasGroup(s) }
func (r room) TakeLeased(now int64, lease wire.LeaseID) (core.Slot, bool) {
	s, ok := r.s.a.core.TakeLeased(now, lease)
	r.s.wanted = r.s.a.core.Owed() || r.s.wanted
	return s, ok
}
func (r room) GiveLeased(lease wire.LeaseID, need wire.Resources, slot core.Slot) {
	r.s.wanted = r.s.a.core.GiveLeased(lease, need, slot) || r.s.wanted
}
func (r room) LendLeased(lease wire.LeaseID, lend bool) { r.s.a.core.LendLeased(lease, lend) }
func (r room) Leased(lease wire.LeaseID, number uint32) bool {
	return r.s.a.core.Leased(lease, number)
}
func (r room) Keep(need wire.Resources, slot core.Slot) { r.s.a.core.KeepRoom(need, slot) }
func (r room) Give(need wire.Resources, slot core.Slot) {
	r.s.wanted = r.s.a.core.GiveRoom(need, slot) || r.s.wanted
}
func (r room) Lend(proc string, lend bool) {
	if p, err := parseProc(proc); err == nil {
		r.s.wanted = r.s.a.core.LendRoom(p, lend) || r.s.wanted
	}
}
func (r room) Yields(now, time int64) bool    { return r.s.a.core.Yields(now, time) }
func (r room) KeptFor(now int64) string       { return r.s.a.core.KeptFor(now) }
func (r room) Could(need wire.Resources) bool { return r.s.a.core.CouldRoom(need) }
func (r room) Total() wire.Resources          { return r.s.a.core.Total() }

// memory is the store for the reactor.
type memory struct{ s *store.Store }

func (m memory) Seal(client uint32, id wire.ObjectID, form byte, segment uint32, offset, size int64) error {
	err := m.s.Seal(client, id, form, segment, offset, size)
	if errs.Is(err, errs.Exists) {
		return nil // made once more; the first is as good
	}
	return err
}

func (m memory) Resident(id wire.ObjectID) bool {
	p, _, _ := m.s.Where(id)
	return p == store.InMemory
}

func (m memory) Own(id wire.ObjectID) { m.s.Own(id) }

// spillDir is where objects go that memory has no room for.
func (s *sdkServer) spillDir() string {
	c := s.a.cfg
	if dir := os.ExpandEnv(c.Spill); filepath.IsAbs(dir) {
		return filepath.Join(dir, "launcher-"+c.Cluster+"-"+string(c.Node)+"-objects")
	}
	return filepath.Join(c.Dir, "objects")
}

// conn serves one connection whose greeting was LSDK.
func (s *sdkServer) conn(ctx context.Context, c *sdkConn, pid int) error {
	cl, err := s.greet(ctx, c, pid)
	if err == nil {
		err = c.readFrames(func(b []byte) error { return s.frames(ctx, cl, b) })
	}
	if err != nil {
		s.refuse(c, err)
	}
	if cl != nil && ctx.Err() == nil { // else the next agent has it
		s.leave(cl, c, err)
	}
	c.close()
	return err
}

// refuse says what was wrong, and ends the conversation.
func (s *sdkServer) refuse(c *sdkConn, err error) {
	c.putFrame(wire.MsgError, wire.Marshal(errs.ToWire(err)))
	c.flush()
}
