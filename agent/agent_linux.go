package agent

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"launcher/agent/core"
	"launcher/agent/spool"
	"launcher/agent/supervisor"
	"launcher/agent/transfer"
	"launcher/agent/workers"
	"launcher/internal/clock"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/follow"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// Options of an agent. Zero values are what production uses.
type Options struct {
	Log     *slog.Logger
	Version string // of the build; "" = the binary's own
	Binary  string // path of launcher that programs get in LAUNCHER; "" = this program
	// Supervisor, for tests: a connection that is there already.
	Supervisor *supervisor.Client
	// Config, for tests: instead of the one that the supervisor hands over.
	Config *wire.NodeConfig
	// SDK puts the Python SDK under the cache directory and gives the directory for
	// PYTHONPATH; nil = programs get none.
	SDK func(cache string) (string, error)

	opened func(*agent) // for tests: called before anything is served
}

// followName is where the copy of the head's journal is kept.
const followName = "follow"

// leftover is what is removed at the end of a node, below its directory.
var leftover = []string{"spool", "tasks", "workers", "jobs", "trees", followName, headFile, seatDir}

// agent is one life of a node's agent.
type agent struct {
	o       Options
	log     *slog.Logger
	super   *supervisor.Client
	cfg     wire.NodeConfig
	clock   clock.Clock
	fdMu    sync.Mutex
	fds     map[string]*os.File // handed over by the supervisor, taken out as they are used; guarded by fdMu
	id      *secure.Identity
	state   *journal
	mu      sync.Mutex // of core and of the tasks' reactor
	core    *core.Core // guarded by mu
	sdk     *sdkServer
	metrics *metrics
	workers *workers.Pool
	anyone  wire.Job // the job of programs that no job started
	spool   *spool.Spool
	copies  *follow.Copies
	events  queue
	head    *headLink
	seat    *headSeat
	ship    *shipper
	starts  *starter
	trees   *trees
	outputs *outputs
	done    done
	ends    chan struct{} // a process has ended: there may be something to sweep
	local   *localServer
	groups  *groups
	peers   *peers
	env     *environment
	checked chan check // the first outcome of checkPool, when the greeting waited for it
	trouble string     // what the node lacks, when it greets
	total   wire.Resources
	gpus    []wire.GPU // as they were found first, whatever others' clusters have
	claims  *claims
	cores   int

	questions questions // what the head may ask
	links     *peerLinks
	routes    *routes
	transfer  *transfer.Transfer

	wg   sync.WaitGroup // what effects started
	left chan string    // why the node leaves; closed by the loop
	why  string
}

// Main runs an agent below its supervisor until the node's work is over (nil: the
// supervisor ends too), the agent cannot go on (an error that Fatal reports), or ctx
// ends, which is an order to end the node's work.
func Main(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Version == "" {
		o.Version = session.BuildVersion()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	a := &agent{o: o, log: o.Log, super: o.Supervisor, clock: clock.Real{}}
	a.routes = newRoutes(a)
	if a.super == nil {
		c, err := supervisor.Connect(ctx)
		if err != nil {
			return errs.Wrap(errs.Unknown, err, "the agent cannot start")
		}
		defer c.Close()
		a.super = c
	}
	var err error
	if o.Config != nil {
		a.cfg = *o.Config
	} else if a.cfg, err = a.super.Config(); err != nil {
		return errs.Wrap(errs.Unknown, err, "the node's configuration")
	}
	a.log = a.log.With("node", a.cfg.Node)
	if a.o.Binary == "" {
		if a.o.Binary, err = os.Executable(); err != nil {
			return errs.Wrap(errs.Internal, err, "this program's own path")
		}
	}
	return a.run(ctx)
}

// Fatal reports whether an error of Main is one that starting again cannot help.
func Fatal(err error) bool {
	switch errs.KindOf(err) {
	case errs.Fenced, errs.Permission, errs.Version, errs.Invalid:
		return true
	}
	return false
}

// joinBound is how long a new node tries to join, at least.
const joinBound = time.Minute

func (a *agent) run(ctx context.Context) error {
	a.fds = a.super.FDs()
	defer func() {
		for _, f := range a.fds {
			f.Close()
		}
	}()
	if err := os.MkdirAll(a.cfg.Dir, 0o700); err != nil {
		return errs.Wrap(errs.Unavailable, err, "the node's directory")
	}
	a.env = newEnvironment(a)
	// Finding out what there is and joining take a while each.
	var d detected
	g, in := errgroup.WithContext(ctx)
	g.Go(func() (err error) { d, err = a.detect(in); return err })
	g.Go(func() error { return a.join(in) })
	if len(a.cfg.Setup) > 0 || a.cfg.Python != "" {
		a.checked = make(chan check, 1)
		a.wg.Go(func() { a.checked <- a.checkPool(ctx) })
		g.Go(func() error { a.awaitCheck(in); return nil })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := a.open(ctx, d); err != nil {
		return err
	}
	if o := a.o.opened; o != nil {
		o(a)
	}
	return a.serve(ctx, d)
}

// open makes or takes up everything that the agent works with.
func (a *agent) open(ctx context.Context, d detected) (err error) {
	a.events.init()
	a.done.more = make(chan struct{}, 1)
	a.ends = make(chan struct{}, 1)
	a.total, a.gpus, a.cores = d.Total, d.GPUs, len(d.CPUs)
	if a.state, err = openJournal(ctx, a.super, a.take("state"), a.log); err != nil {
		return err
	}
	if a.peers, err = listenPeers(ctx, a); err != nil {
		return err
	}
	if a.local, err = listenLocal(ctx, a); err != nil {
		return err
	}
	a.groups = newGroups(a)
	a.starts, a.trees, a.outputs = newStarter(a), newTrees(a), newOutputs(a)
	a.fdMu.Lock()
	a.claims = newClaims(a.log, a.super, a.clock, a.cfg.Share == "ignore", a.fds)
	a.fdMu.Unlock()
	a.core = core.New(a.coreConfig(d), a.state.state)
	a.core.SetLasting(wire.Resources{}, true) // until it is known: values of the agent before
	a.anyone = anyoneOf(a.cfg)
	a.sdk = newSDKServer(a)
	a.metrics = newMetrics(a)
	a.workers = newWorkers(a)
	if err = a.sdk.open(ctx); err != nil {
		return err
	}
	a.fdMu.Lock()
	a.fds = a.workers.Take(a.fds)
	a.fdMu.Unlock()
	a.spool, err = spool.Open(spool.Config{Dir: filepath.Join(a.cfg.Dir, "spool"), Log: a.log, Notify: a.spooled})
	if err != nil {
		return err
	}
	if a.fds, err = a.spool.AddStored(a.fds); err != nil {
		a.log.Error("output of an earlier agent cannot be taken up", "err", err)
	}
	a.copies = follow.New(filepath.Join(a.cfg.Dir, followName), 0)
	a.copies.Heard(uint64(a.state.state.HeadEpoch()))
	a.ship = newShipper(a)
	a.head, a.seat = newHeadLink(a), newHeadSeat(a)
	a.links = newPeerLinks(a, a.state.state.Number())
	a.links.dir.news = a.sdk.peerNews
	a.transfer = transfer.New(transfer.Config{Store: objectStore{a.sdk}, Dial: a.links.dialObjects, Log: a.log})
	a.links.serves[wire.StreamObjects] = func(ctx context.Context, st *session.Stream, m wire.PeerOpen) error {
		return a.transfer.Serve(ctx, st, m.Number)
	}
	a.links.serves[wire.StreamTasks] = func(ctx context.Context, st *session.Stream, m wire.PeerOpen) error {
		return a.sdk.servePeer(ctx, st, m)
	}
	a.links.serves[wire.StreamPrograms] = func(ctx context.Context, st *session.Stream, _ wire.PeerOpen) error {
		return a.sdk.serveFiles(ctx, st)
	}
	a.sdk.resume() // it may want all of the above
	return nil
}

func (a *agent) coreConfig(d detected) core.Config {
	c := a.cfg
	return core.Config{
		Hello: wire.Hello{
			Node: c.Node, Epoch: c.Epoch, Restarts: a.super.Restarts(), Pool: c.Pool, Token: c.Token, Version: a.o.Version,
			Host: d.Host, Addr: a.peers.addr(), Total: d.Total, GPUs: a.markClaimed(d.GPUs), Topology: d.Lie, Labels: c.Labels, Deadline: c.Deadline, PID: os.Getpid(), Python: d.Python, Why: a.lacks(a.trouble),
		},
		CPUs: d.CPUs, Claims: a.claims, Grace: c.Grace, Binary: a.o.Binary, Socket: a.local.path, Cluster: c.Cluster, Dir: c.Dir, Signalled: c.Notice > 0,
	}
}

// take gives a descriptor that the supervisor kept; nil = there is none of that name.
func (a *agent) take(name string) *os.File {
	a.fdMu.Lock()
	defer a.fdMu.Unlock()
	f := a.fds[name]
	delete(a.fds, name)
	return f
}

// errLeft ends the parts of an agent whose node is done.
var errLeft = errs.New(errs.Cancelled, "the node leaves")

// serve runs all parts until the node leaves or one of them cannot go on.
func (a *agent) serve(ctx context.Context, d detected) error {
	// A signal is an order to the core, not the end of the parts.
	g, in := errgroup.WithContext(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if why := "node " + string(a.cfg.Node) + " was told to stop"; a.cfg.Notice == 0 {
			a.events.push(core.StopNode{Why: why, Grace: int64(stopGrace)})
		} else {
			a.events.push(core.LeaveSoon{Why: why, By: a.clock.Now() + a.cfg.Notice, Grace: int64(noticeGrace)})
		}
	})
	defer stop()
	warned := make(chan os.Signal, 1)
	signal.Notify(warned, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(warned)
	g.Go(func() error {
		for {
			select {
			case sig := <-warned:
				a.events.push(core.LeaveSoon{Why: "node " + string(a.cfg.Node) + " was told to leave by " + unix.SignalName(sig.(syscall.Signal))})
			case <-in.Done():
				return nil
			}
		}
	})
	g.Go(func() error { return a.loop(in) })
	g.Go(func() error { return a.head.run(in) })
	g.Go(func() error { return a.local.serve(in) })
	g.Go(func() error { return a.peers.serve(in) })
	g.Go(func() error { return a.starts.run(in) })
	g.Go(func() error { a.done.run(in, a); return nil })
	g.Go(func() error { a.sweep(in); return nil })
	g.Go(func() error { a.groups.watch(in); return nil })
	g.Go(func() error { return a.sdk.run(in) })
	g.Go(func() error { a.renew(in); return nil })
	g.Go(func() error { a.watchOthers(in); return nil })
	g.Go(func() error { a.claims.run(in); return nil })
	g.Go(func() error { a.findPython(in, d); return nil })
	g.Go(func() error {
		select {
		case <-a.super.Done():
			return errs.New(errs.Lost, "the supervisor is gone")
		case <-in.Done():
			return nil
		}
	})
	err := g.Wait()
	a.groups.close()
	a.links.close()
	a.transfer.Close()
	a.sdk.close()
	a.workers.Close()
	a.sdk.shut(err)
	a.wg.Wait()
	a.spool.Close()
	a.claims.close()
	if err == errLeft {
		return a.farewell(context.WithoutCancel(ctx))
	}
	return err
}

// stopGrace is between SIGTERM and SIGKILL for the node's processes when the node itself
// is stopped; its supervisor allows the agent 20 s for everything.
const stopGrace = 10 * time.Second

// noticeGrace is the same for a node that was told beforehand.
const noticeGrace = 5 * time.Second

// farewell removes what the node leaves behind and ends the supervisor.
func (a *agent) farewell(ctx context.Context) error {
	a.log.Info("leaving", "why", a.why)
	names := leftover
	if !a.ship.complete() {
		names = []string{"tasks", "jobs", "trees"} // the only copy of some output stays
		a.log.Warn("output that the head did not take stays in the spool", "dir", filepath.Join(a.cfg.Dir, "spool"))
	}
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(a.cfg.Dir, name)); err != nil {
			a.log.Warn("cannot remove what the node leaves behind", "err", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // that may have taken long
	defer cancel()
	if err := a.super.Farewell(ctx, a.why); err != nil {
		a.log.Warn("the supervisor did not take the farewell", "err", err)
	}
	return nil
}
