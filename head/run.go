package head

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"launcher/head/core"
	"launcher/head/journal"
	"launcher/head/record"
	"launcher/internal/clock"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// Files in the state directory.
const (
	configFile  = "head.config"
	clusterFile = "cluster.json"
	specFile    = "spec.toml"
	socketFile  = "head.sock"
	downFile    = "down.done" // the cluster went down completely
)

// head is a running head.
type head struct {
	o       Options
	log     *slog.Logger
	clock   clock.Clock
	dir     string // of what is of this seat only
	state   string // of what stays when the head moves; where it does not, dir
	host    string
	started int64

	ctx     context.Context // ends with the head
	journal *journal.Journal
	record  *record.Writer
	ca      *secure.Authority
	id      *secure.Identity
	session session.Config
	joins   *joiner
	logs    *logKeeper
	tables  *tableKeeper
	nodes   *nodeWatch
	follow  *followers
	guests  guests
	outputs *outputs
	wg      sync.WaitGroup // what effects started

	items   chan item
	over    chan struct{} // the loop has ended
	release releaseQueue
	views   views
	closed  chan struct{} // CloseDown was performed
	left    []string      // by it: whose end was not confirmed

	// The loop's own.
	core         *core.Core
	current      map[wire.NodeID]*agentConn
	now          int64
	records      [][]byte
	effects      []performed
	last         uint64 // newest record appended
	sinceRecs    int
	sinceBytes   int64
	snapSize     int64
	snapshotting sync.Mutex // held while a snapshot is being written

	clientID  atomic.Uint64
	closeOnce sync.Once
	fenced    chan error    // a newer head is known of
	halted    atomic.Bool   // the loop is to come to rest: the head moves
	still     chan struct{} // it has
	gone      atomic.Bool   // another one may run already
	moved     chan struct{} // the head has moved
	configMu  sync.Mutex    // held while head.config is being written
	mu        sync.Mutex
	config    wire.HeadConfig              // guarded by mu once the head serves
	clients   map[uint64]*request          // guarded by mu
	bells     map[wire.JobID]chan struct{} // closed at the job's next change; guarded by mu
	asks      asks
	listens   []*listener             // guarded by mu
	more      func(host string) error // listens on one more address
}

func serveCluster(ctx context.Context, o Options) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = newSteady()
	}
	if o.Version == "" {
		o.Version = session.BuildVersion()
	}
	// Small when idle: give memory back early rather than grow.
	debug.SetGCPercent(50)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &head{
		o: o, log: o.Log, clock: o.Clock, dir: o.Dir, ctx: ctx, started: o.Clock.Now(),
		items: make(chan item, 1024), over: make(chan struct{}), release: releaseQueue{more: make(chan struct{}, 1)}, closed: make(chan struct{}), fenced: make(chan error, 1), still: make(chan struct{}), moved: make(chan struct{}),
		current: map[wire.NodeID]*agentConn{}, clients: map[uint64]*request{}, bells: map[wire.JobID]chan struct{}{},
	}
	h.host, _ = os.Hostname()
	h.guests = guests{left: h.clock.Now(), changed: make(chan struct{})}
	if h.config, err = ReadConfig(o.Dir); err != nil {
		return err
	}
	if h.state = h.config.State; h.state == "" {
		h.state = h.dir
	}
	again, over, err := h.wasDown()
	if err != nil || over {
		return err
	}
	if err := h.alone(); err != nil {
		return err
	}
	if err := h.seatHere(); err != nil {
		return err
	}
	if err := h.identity(); err != nil {
		return err
	}
	if err := h.recover(again); err != nil {
		return err
	}
	defer func() {
		// Bounded: a disk that is full now need not keep a head that ends.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err2 := h.journal.Close(ctx); err == nil && !errs.Is(err2, errs.Fenced) {
			err = err2
		}
	}()
	if err := h.joins.load(h.core); err != nil {
		return err
	}
	defer h.joins.close()
	opts := record.Options{Log: o.Log, Term: h.config.Term}
	if h.config.Roam != "" {
		opts.Claim = h.journal.Check
	}
	if h.record, err = record.NewWriter(h.state, opts); err != nil {
		return err
	}
	defer func() {
		if err2 := h.record.Close(); err == nil {
			err = err2
		}
	}()
	h.logs, h.tables, h.nodes = newLogKeeper(h), newTableKeeper(h), newNodeWatch(h)
	h.follow, h.outputs = newFollowers(h), newOutputs(h)
	return h.serve(ctx, cancel)
}

// serve runs everything until the cluster is down, something fails, or ctx ends.
func (h *head) serve(ctx context.Context, cancel context.CancelFunc) error {
	g, ctx := errgroup.WithContext(ctx)
	h.ctx = ctx
	defer h.wg.Wait()
	defer cancel()
	sock, err := h.listen(ctx, g)
	if err != nil {
		cancel()
		close(h.over) // somebody may have connected already
		_ = g.Wait()
		return err
	}
	g.Go(func() error { return h.loop(ctx) })
	g.Go(func() error { return h.releaser(ctx) })
	g.Go(func() error { h.logs.run(ctx); return nil })
	g.Go(func() error { h.tables.run(ctx); return nil })
	g.Go(func() error { h.outputs.run(ctx); return nil })
	g.Go(func() error { return h.watchJournal(ctx) })
	g.Go(func() error { return h.follow.run(ctx) })
	if h.config.Away {
		g.Go(func() error { return h.lonely(ctx) })
	}
	g.Go(func() error { h.id.Keep(ctx, h.ca.Renewer(h.id.Subject(), h.certLife()), h.log); return nil })
	if epoch := h.epoch(); epoch != 0 {
		if err := h.writeClusterFile(epoch); err != nil {
			cancel()
			_ = g.Wait()
			return err
		}
		// That the cluster had gone down is history once the journal says so.
		if err := h.journal.Sync(ctx); err != nil {
			cancel()
			_ = g.Wait()
			return err
		}
		_ = os.Remove(filepath.Join(h.dir, downFile))
		_ = os.Remove(filepath.Join(h.dir, wire.DownLeftFile)) // the journal has what is in it
		h.log.Info("head is up", "epoch", uint64(epoch), "addrs", h.addresses(), "version", h.o.Version)
		g.Go(func() error { return h.serveUnix(ctx, sock) })
		if h.o.Ready != nil {
			h.o.Ready()
		}
		if h.o.started != nil {
			h.o.started(h)
		}
	}
	var keeper <-chan struct{}
	if h.o.Keeper != nil {
		keeper = h.o.Keeper.Done()
	}
	g.Go(func() error {
		for leave := h.o.Leave; ; {
			select {
			case <-ctx.Done():
				return nil
			case <-keeper:
				return errs.New(errs.Lost, "the head's supervisor is gone")
			case <-h.closed:
				return errDown
			case err := <-h.fenced:
				return err
			case <-h.moved:
				return ErrMoved
			case <-leave:
				leave = nil
				h.event(core.SeatLeaves{Why: "its node is told to end"})
			}
		}
	})
	err = g.Wait()
	if h.gone.Load() {
		return ErrMoved
	}
	if err == errDown {
		return h.finish()
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// epoch is the head's; 0 when it ends.
func (h *head) epoch() (e wire.Epoch) {
	h.do(func(c *core.Core) { e = c.Epoch() })
	return e
}

// replaced ends the head, for a newer one is known of.
func (h *head) replaced(err error) {
	select {
	case h.fenced <- err:
	default:
	}
}

// errDown ends the head because the cluster is down.
var errDown = errors.New("the cluster is down")

// finish leaves the state directory as that of a cluster that is down.
func (h *head) finish() error {
	_ = os.Remove(filepath.Join(h.dir, clusterFile))
	_ = os.RemoveAll(filepath.Join(h.state, "dirs")) // no node is left to want one
	if len(h.left) > 0 {                             // before it counts as down
		if err := record.WriteFile(filepath.Join(h.dir, wire.DownLeftFile), []byte(strings.Join(h.left, "\n")+"\n")); err != nil {
			return err
		}
	}
	if err := record.WriteFile(filepath.Join(h.dir, downFile), nil); err != nil {
		return err
	}
	h.log.Info("the cluster is down")
	return sockpath.Remove(filepath.Join(h.dir, socketFile))
}

// wasDown says whether the cluster in the state directory went down completely: again
// when it is now brought up anew, over when this head is only the restart of one that
// died in its last breath.
func (h *head) wasDown() (again, over bool, err error) {
	path := filepath.Join(h.dir, downFile)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, false, nil
		}
		return false, false, errs.Wrap(errs.Permission, err, "the state directory %s", h.dir)
	}
	if h.o.Keeper != nil && h.o.Keeper.Restarts() > 0 {
		return false, true, nil
	}
	return true, false, nil
}

// alone looks whether another head serves the cluster from this machine, before the
// journal is taken away from it.
func (h *head) alone() error {
	if h.o.Keeper != nil && h.o.Keeper.FDs()[storedUnix] != nil {
		return nil // the socket is our own
	}
	// The socket of a head that was killed lives for a moment more in a process that it was
	// just starting; a head that serves is there every time, however slow the machine is.
	for range 10 {
		if !sockpath.Answers(filepath.Join(h.dir, socketFile)) {
			return nil
		}
		select {
		case <-time.After(30 * time.Millisecond):
		case <-h.ctx.Done():
		}
	}
	return errs.New(errs.Exists, "another head serves cluster %s", h.config.Name)
}

// ReadConfig reads head.config in a cluster's state directory.
func ReadConfig(dir string) (c wire.HeadConfig, err error) {
	path := filepath.Join(dir, configFile)
	b, err := os.ReadFile(path)
	if err != nil {
		kind := errs.Permission
		if errors.Is(err, fs.ErrNotExist) {
			kind = errs.NotFound
		}
		return c, errs.Wrap(kind, err, "cannot read the head's configuration").Hint("heads are started by `launcher up`")
	}
	if err := wire.Unmarshal(b, &c); err != nil {
		return c, errs.Wrap(errs.Corrupt, err, "%s", path).Hint("`launcher up SPEC` writes it anew")
	}
	return c, nil
}

// certLife is that of nodes' certificates. They are renewed at half their life, and a node
// may be without a head for grace: it must still be let in after that.
func (h *head) certLife() time.Duration {
	if h.config.CertLife > 0 {
		return time.Duration(h.config.CertLife)
	}
	return max(secure.DefaultLife, 3*time.Duration(h.config.Grace))
}

// identity loads the cluster's authority and makes the head's own certificate.
func (h *head) identity() (err error) {
	if h.ca, err = secure.LoadAuthority(h.state); err != nil {
		return err
	}
	if h.id, err = h.ca.IssueSelf(secure.RoleHead, "head", h.certLife()); err != nil {
		return err
	}
	if h.joins, err = newJoiner(h); err != nil {
		return err
	}
	h.session = session.Config{Identity: h.id, Authority: h.ca, Joiner: h.joins, MayRenew: h.mayRenew, CertLife: h.certLife(), Version: h.o.Version, Log: h.log}
	return nil
}

// recover opens the journal and makes the core of what it says.
func (h *head) recover(again bool) error {
	o := journal.Options{Log: h.log, OnStall: h.stalled, RetryEvery: h.o.journalRetry}
	if h.o.Followers > 0 {
		o.Recent = recentBytes
	}
	j, rec, err := journal.Open(filepath.Join(h.state, "journal"), o)
	if err != nil {
		return err
	}
	h.journal = j
	d, err := replay(rec, h.o.Machines)
	if err != nil {
		return err
	}
	var nonce [8]byte
	rand.Read(nonce[:]) // never fails
	h.last = rec.Last()
	h.sinceRecs = len(rec.Records)
	for _, r := range rec.Records {
		h.sinceBytes += int64(len(r))
	}
	h.snapSize = int64(len(rec.Snapshot))
	h.views.cfg = core.Config{
		Cluster:   h.config.Name,
		Nonce:     hex.EncodeToString(nonce[:]),
		SpecPath:  h.config.SpecPath,
		SpecText:  h.config.SpecText,
		Version:   h.o.Version,
		HeadPID:   os.Getpid(),
		HeadHost:  h.host,
		Pools:     h.config.Pools,
		RecordDir: filepath.Join(h.state, "jobs"),
		Grace:     h.config.Grace,
		Machines:  h.o.Machines,
		Suspect:   int64(h.o.Suspect),
		Lost:      int64(h.o.Lost),
		Term:      h.config.Term,
	}
	cfg := h.views.cfg
	cfg.Again = again
	if h.o.Keeper == nil || h.o.Keeper.Restarts() == 0 {
		cfg.Silent = h.config.Silent
	}
	if cfg.Roam = h.config.Roam; cfg.Roam != "" {
		cfg.Seat, cfg.Why, cfg.Doubted = h.config.Seat, cmp.Or(h.o.Why, h.config.Why), h.o.Doubted
	}
	if cfg.Term > 0 {
		cfg.Gone = h.lostCheckpoints(d)
	}
	h.core = core.New(cfg, d)
	return nil
}

// replay makes the Durable that a journal adds up to.
func replay(rec *journal.Recovered, machines map[wire.Kind]core.Maker) (d *core.Durable, err error) {
	if rec.Snapshot == nil {
		d = core.NewDurable(machines)
	} else if d, err = core.DecodeDurable(rec.Snapshot, machines); err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "the journal's snapshot of record %d", rec.SnapshotSeq)
	}
	for i, b := range rec.Records {
		r, err := core.DecodeRecord(b)
		if err == nil {
			err = d.Apply(r)
		}
		if err != nil {
			return nil, errs.Wrap(errs.Unknown, err, "journal record %d", rec.SnapshotSeq+1+uint64(i))
		}
	}
	return d, nil
}

// checkEvery is how often a head looks whether another one has replaced it. One that
// writes notices by that; one with nothing to do would go on answering for ever.
const checkEvery = 5 * time.Second

func (h *head) watchJournal(ctx context.Context) error {
	tick := time.NewTicker(cmp.Or(h.o.checkEvery, checkEvery))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := h.journal.Check(); errs.Is(err, errs.Fenced) && !h.halted.Load() {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// stalled is told by the journal when writing fails and when it goes on.
func (h *head) stalled(err error) {
	h.views.forget()
	if err != nil {
		h.log.Error("the journal cannot be written; new work is refused until it can", "err", err)
	} else {
		h.log.Info("the journal can be written again")
	}
}
