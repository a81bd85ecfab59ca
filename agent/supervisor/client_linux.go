package supervisor

import (
	"context"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/internal/errs"
	"launcher/wire"
)

// AgentFD is the descriptor at which an agent or head finds its supervisor.
const AgentFD = 3

// Client is the agent's (or head's) connection to its supervisor. Its methods may be
// called by any goroutine. A new process inherits a new connection: there is nothing to
// reconnect. When the supervisor is gone, Done is closed and every call fails with
// errs.Lost; the process is to end then, and an agent is ended half a second later.
type Client struct {
	handover handover
	out      *sender
	in       *receiver
	fds      map[string]*os.File

	mu      sync.Mutex
	seq     uint32
	waiting map[uint32]chan reply
	gone    bool

	exits  exitQueue
	strays exitQueue
	done   chan struct{}
	owned  sync.WaitGroup
	closed bool // by Close; not by the supervisor's death
	once   sync.Once
}

// Connect takes over the socket that the supervisor left at AgentFD and reads what it
// hands over.
func Connect(ctx context.Context) (*Client, error) {
	st := unix.Stat_t{}
	if err := unix.Fstat(AgentFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errs.New(errs.Invalid, "this process was not started by a supervisor").
			Hint("agents are started by `launcher up`, not by hand")
	}
	unix.CloseOnExec(AgentFD)
	return connectFD(ctx, AgentFD)
}

// connectFD makes a Client of one end of a socket pair, which it takes over.
func connectFD(ctx context.Context, fd int) (*Client, error) {
	c := &Client{out: &sender{fd: fd}, in: newReceiver(fd), fds: map[string]*os.File{}, waiting: map[uint32]chan reply{}, done: make(chan struct{})}
	c.exits.init()
	c.strays.init()
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) })
	err := c.receiveHandover()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		for _, f := range c.fds {
			f.Close()
		}
		_ = unix.Close(fd)
		return nil, errs.Wrap(errs.Lost, err, "taking over from the supervisor")
	}
	c.owned.Go(c.exits.pump)
	c.owned.Go(c.strays.pump)
	c.owned.Go(c.receive)
	return c, nil
}

func (c *Client) receiveHandover() error {
	for {
		m, err := c.in.next()
		if err != nil {
			return err
		}
		switch m.typ {
		case msgHandover:
			if err := wire.Unmarshal(m.body, &c.handover); err != nil {
				return err
			}
			for _, p := range c.handover.Procs {
				if p.Exit != nil {
					c.exits.push(*p.Exit)
				}
			}
		case msgFDs:
			var names []string
			if err := wire.Unmarshal(m.body, &names); err != nil || len(names) != len(m.fds) {
				m.closeFDs()
				return errs.New(errs.Corrupt, "%d names for %d descriptors", len(names), len(m.fds))
			}
			for i, n := range names {
				c.fds[n] = os.NewFile(uintptr(m.fds[i]), n)
			}
		case msgExits: // ended while we were reading
			if err := c.gotExits(m.body); err != nil {
				return err
			}
		case msgHanded:
			return nil
		default:
			return errs.New(errs.Corrupt, "message type %d in the handover", m.typ)
		}
	}
}

func (c *Client) gotExits(body []byte) error {
	var xs []Exit
	if err := wire.Unmarshal(body, &xs); err != nil {
		return err
	}
	ours := xs[:0]
	for _, x := range xs {
		if x.Proc == (wire.Proc{}) {
			c.strays.push(x)
		} else {
			ours = append(ours, x)
		}
	}
	c.exits.push(ours...)
	return nil
}

// receive takes answers and ends until the supervisor is gone.
func (c *Client) receive() {
	for {
		m, err := c.in.next()
		if err != nil {
			break
		}
		m.closeFDs()
		switch m.typ {
		case msgExits:
			err = c.gotExits(m.body)
		case msgReply:
			var r reply
			if err = wire.Unmarshal(m.body, &r); err == nil {
				c.mu.Lock()
				w := c.waiting[m.seq]
				delete(c.waiting, m.seq)
				c.mu.Unlock()
				if w != nil {
					w <- r
				}
			}
		}
		if err != nil {
			break
		}
	}
	c.mu.Lock()
	c.gone = true
	for _, w := range c.waiting {
		close(w)
	}
	c.waiting = nil
	closed := c.closed
	c.mu.Unlock()
	if !closed && c.handover.Mark != "" {
		// The supervisor is dead. Its guard kills everything; if that was killed in the
		// same instant, this is what finds the rest.
		ctx, cancel := context.WithTimeout(context.Background(), killBound)
		proc.KillMarked(ctx, c.handover.Mark)
		cancel()
		// And this process is not to outlive it either, whatever it is stuck in.
		time.AfterFunc(afterlife, func() { os.Exit(1) })
	}
	close(c.done)
}

// afterlife is how long an agent may take to end after its supervisor.
const afterlife = 500 * time.Millisecond

// Config is the node's configuration; an empty one for a head.
func (c *Client) Config() (cfg wire.NodeConfig, err error) {
	if len(c.handover.Config) == 0 {
		return cfg, nil
	}
	err = wire.Unmarshal(c.handover.Config, &cfg)
	return cfg, err
}

// Restarts counts the agents before this one under the same supervisor.
func (c *Client) Restarts() uint32 { return c.handover.Restarts }

// List is the process table as it was handed over. The ends in it come out of Exits too.
func (c *Client) List() []ProcInfo { return c.handover.Procs }

// FDs are the stored descriptors that were handed over, by name. They are the caller's:
// it uses or closes each. The supervisor keeps its own until DropFD.
func (c *Client) FDs() map[string]*os.File { return maps.Clone(c.fds) }

// Exits gives every unacknowledged end once: those of the handover, then each as it
// happens. Nothing else waits for whoever reads it. Close closes it.
func (c *Client) Exits() <-chan Exit { return c.exits.out }

// Strays gives the ends of orphans that came to the supervisor: forked workers, and what
// programs left behind. Those have no Proc, are told once, and are lost with an agent.
func (c *Client) Strays() <-chan Exit { return c.strays.out }

// Done is closed when the supervisor is gone. What it had started has been killed then
// as far as this process can find it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Order is a process to start.
type Order struct {
	Proc   wire.Proc // its name; an order for a known one starts nothing
	Argv   []string  // Argv[0] is looked for in Env's PATH
	Env    []string  // all of it; the supervisor adds its mark
	Dir    string
	CPUs   []int        // nil = all of the node's
	Limits []proc.Limit // nil = inherited
	// Files become descriptors 0, 1, 2, ...; nil is /dev/null. The caller keeps its own,
	// which are in blocking mode from then on.
	Files []*os.File
	// Keep is stored as by StoreFD, in one step with the start and only if it starts: the
	// read ends of its output.
	Keep map[string]*os.File
}

// Started is the answer to a Spawn.
type Started struct {
	PID   int
	At    int64 // unix nanoseconds
	Known bool  // it had been started before; Files and Keep were not used
}

// Spawn starts a process. A start that the kernel refuses is a *proc.StartError
// somewhere in the error, with hints. Calls from several goroutines are in flight at
// the same time; that hides the way to the supervisor and back.
func (c *Client) Spawn(ctx context.Context, o Order) (Started, error) {
	files := o.Files
	if len(files) < 3 {
		files = append(slices.Clone(files), make([]*os.File, 3-len(files))...)
	}
	w := spawnOrder{Proc: o.Proc, Argv: o.Argv, Env: o.Env, Dir: o.Dir, CPUs: o.CPUs, Limits: o.Limits}
	var pass []*os.File
	for _, f := range files {
		w.Files = append(w.Files, f != nil)
		if f != nil {
			f.Fd() // as in os/exec: a program must not find its standard files non-blocking
			pass = append(pass, f)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Keep)) {
		w.Keep = append(w.Keep, name)
		pass = append(pass, o.Keep[name])
	}
	r, err := c.call(ctx, msgSpawn, w, pass...)
	if err != nil {
		return Started{}, errs.Wrap(errs.Unknown, err, "starting %s", o.Proc)
	}
	if r.Step != "" {
		se := &proc.StartError{Step: proc.Step(r.Step), Errno: syscall.Errno(r.Errno), Path: r.Path}
		e := se.Classified()
		return Started{}, &errs.Error{Kind: e.Kind, Hints: e.Hints, Err: se}
	}
	return Started{PID: r.PID, At: r.Started, Known: r.Known}, nil
}

// Signal sends a signal to a process, or with group to its whole process group; after
// its end, group reaches what it left behind, and SIGKILL with group everything below
// it. A process that is gone is errs.NotFound.
func (c *Client) Signal(ctx context.Context, p wire.Proc, sig syscall.Signal, group bool) error {
	r, err := c.call(ctx, msgSignal, signalOrder{Proc: p, Sig: int(sig), Group: group})
	switch {
	case err != nil:
	case r.Errno == int(unix.ESRCH):
		return errs.New(errs.NotFound, "process %s is gone", p)
	case r.Errno != 0:
		err = syscall.Errno(r.Errno)
	default:
		return nil
	}
	return errs.Wrap(errs.Unknown, err, "signal %d to process %s", sig, p)
}

// Alive asks the supervisor for an answer: an error of kind errs.Lost means that it is
// gone or is ending everything, and whatever failed before may have failed for that.
func (c *Client) Alive(ctx context.Context) error {
	_, err := c.call(ctx, msgSignal, signalOrder{})
	return err
}

// Sweep kills everything that ended processes have left behind below the supervisor, also
// what called setsid: what has LAUNCHER_PROC of one that does not run, and, when none
// runs, all that is not the agent's. It costs a look at every process of the machine, so
// it is for now and then. It gives how many it killed.
func (c *Client) Sweep(ctx context.Context) (int, error) {
	r, err := c.call(ctx, msgSweep, struct{}{})
	return r.Count, err
}

// Ack lets the supervisor forget ends. Those of processes that run are ignored.
func (c *Client) Ack(ps ...wire.Proc) error { return c.out.send(msgAck, 0, ps) }

// Release is Ack, and drops what was kept with the Spawn of those processes.
func (c *Client) Release(ps ...wire.Proc) error { return c.out.send(msgRelease, 0, ps) }

// StoreFD makes the supervisor keep a descriptor, under a name that the next agent finds
// it by; one that it has under that name is replaced. When it returns, the descriptor is
// safe. The caller keeps its own.
func (c *Client) StoreFD(ctx context.Context, name string, f *os.File) error {
	_, err := c.call(ctx, msgStore, []string{name}, f)
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "storing descriptor %s", name)
	}
	return nil
}

// StoreFDs is StoreFD for several.
func (c *Client) StoreFDs(ctx context.Context, fds map[string]*os.File) error {
	names := slices.Sorted(maps.Keys(fds))
	files := make([]*os.File, len(names))
	for i, n := range names {
		files[i] = fds[n]
	}
	if _, err := c.call(ctx, msgStore, names, files...); err != nil {
		return errs.Wrap(errs.Unknown, err, "storing descriptors %v", names)
	}
	return nil
}

// DropFD makes the supervisor close stored descriptors. Unknown names are ignored.
func (c *Client) DropFD(names ...string) error { return c.out.send(msgDrop, 0, names) }

// Farewell tells the supervisor that all is over: whatever ends this process now, it is
// not started again, and everything below the supervisor is killed.
func (c *Client) Farewell(ctx context.Context, why string) error {
	_, err := c.call(ctx, msgFarewell, why)
	return err
}

// call sends an order and waits for its answer.
func (c *Client) call(ctx context.Context, typ uint16, v any, files ...*os.File) (r reply, err error) {
	fds, err := descriptors(files)
	if err != nil {
		return r, err
	}
	defer runtime.KeepAlive(files)
	w := make(chan reply, 1)
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return r, errs.New(errs.Lost, "the supervisor is gone")
	}
	c.seq++
	seq := c.seq
	c.waiting[seq] = w
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.waiting, seq)
		c.mu.Unlock()
	}
	if err := c.out.sendLent(typ, seq, v, fds); err != nil {
		forget()
		return r, err
	}
	select {
	case r, ok := <-w:
		if !ok {
			return r, errs.New(errs.Lost, "the supervisor is gone")
		}
		if r.Ending {
			return r, errs.New(errs.Lost, "the supervisor is ending everything")
		}
		if r.Err != "" {
			return r, errs.New(errs.Unavailable, "%s", r.Err)
		}
		return r, nil
	case <-ctx.Done():
		forget()
		return r, errs.Wrap(errs.Unknown, context.Cause(ctx), "no answer from the supervisor")
	}
}

// descriptors gives the numbers of files, which the caller keeps open meanwhile. f.Fd
// would change the blocking mode that all holders share.
func descriptors(files []*os.File) (fds []int, err error) {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(n uintptr) { fds = append(fds, int(n)) })
		}
		if err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "descriptor %s", f.Name())
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Close ends the connection without harm to anything: for tests, and for an agent
// that hands over to the next one. The supervisor takes it as the agent's death.
func (c *Client) Close() { c.once.Do(c.close) }

func (c *Client) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	_ = unix.Shutdown(c.out.fd, unix.SHUT_RDWR)
	<-c.done
	c.exits.close()
	c.strays.close()
	c.owned.Wait()
	c.out.stop()
	_ = unix.Close(c.out.fd)
}

// exitQueue holds ends until the agent takes them.
type exitQueue struct {
	mu   sync.Mutex
	q    []Exit
	more chan struct{}
	stop chan struct{}
	out  chan Exit
}

func (x *exitQueue) init() {
	x.out, x.stop, x.more = make(chan Exit), make(chan struct{}), make(chan struct{}, 1)
}

func (x *exitQueue) push(e ...Exit) {
	x.mu.Lock()
	x.q = append(x.q, e...)
	x.mu.Unlock()
	select {
	case x.more <- struct{}{}:
	default:
	}
}

func (x *exitQueue) pump() {
	defer close(x.out)
	for {
		x.mu.Lock()
		q := x.q
		x.q = nil
		x.mu.Unlock()
		for _, e := range q {
			select {
			case x.out <- e:
			case <-x.stop:
				return
			}
		}
		if len(q) > 0 {
			continue
		}
		select {
		case <-x.more:
		case <-x.stop:
			return
		}
	}
}

func (x *exitQueue) close() { close(x.stop) }
