package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// FrontOptions say what a front is for.
type FrontOptions struct {
	Config  wire.HeadConfig
	Broker  *Broker
	Desk    *Desk
	Log     *slog.Logger
	Version string
	Keeper  Keeper // of AwayMain; nil = nothing is kept
}

// front stands where the head of a cluster would be, on the machine that brought the
// cluster up, while the head is on a host: at the same socket, below the same supervisor.
// It has the head run there, is its broker, relays what commands ask, and brings the
// record back when the cluster is down. Nothing that runs depends on it.
type front struct {
	o     FrontOptions
	dir   string
	log   *slog.Logger
	hosts backends.HeadHost
	ca    []byte
	host  string        // this machine's name
	poke  chan struct{} // somebody has sat down: try again at once
	again chan struct{} // for the head: likewise

	mu       sync.Mutex
	cur      *session.Session // nil: not connected; guarded by mu, as is what follows
	changed  chan struct{}    // closed when cur or err changes
	err      error            // of the newest try
	tries    int
	sittings int
	post     post
	ending   bool             // the cluster is down
	heard    time.Time        // when there was a connection to the head last
	stuck    error            // why it is not started elsewhere
	silent   []wire.NodeID    // of the machine that it was moved from last
	bad      map[string]error // of the last look for a machine: why each cannot have the head
	refused  map[string]error // machines on which it did not start
	giveUp   func()           // ends the try that is under way
	moving   bool             // the head is one that moves; not guarded: it does not change
}

const (
	firstFrontRest = time.Second
	lastFrontRest  = 8 * time.Second // somebody may be waiting for the link to come back
	// fetchBound is how long a record may take to come back.
	fetchBound = 10 * time.Minute
)

// FrontMain runs a front until the cluster is down; that is the only nil error.
func FrontMain(ctx context.Context, o FrontOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &front{o: o, dir: o.Config.Dir, log: o.Log, poke: make(chan struct{}, 1), again: make(chan struct{}, 1), changed: make(chan struct{}), refused: map[string]error{}}
	f.host, _ = os.Hostname()
	ca, err := secure.LoadAuthority(f.dir)
	if err != nil {
		return err
	}
	if _, err := secure.JoinSecret(f.dir); err != nil { // goes to whichever machine has the head
		return err
	}
	f.ca, f.heard, f.giveUp = ca.CA(), time.Now(), func() {}
	if err := f.sit(); err != nil {
		return err
	}
	path := filepath.Join(f.dir, "head.sock")
	ln, err := sockpath.Listen(path)
	if err != nil {
		return err
	}
	if err := f.writeClusterFile(); err != nil {
		ln.Close()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		cfg := session.Config{Cluster: o.Config.Name, Role: secure.RoleHead, Name: "head", Version: o.Version, Log: o.Log}
		_ = session.ServeUnix(ctx, ln, cfg, f.serve)
	})
	wg.Go(func() { every(ctx, lookEvery, func() { f.watch(ctx) }) })
	wg.Go(func() { every(ctx, ghostEvery, func() { f.ghosts(ctx) }) })
	if err := f.keep(ctx); err != nil {
		return err
	}
	if err := f.rise(ctx); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(f.dir, clusterFile))
	if err := os.WriteFile(filepath.Join(f.dir, downFile), nil, 0o600); err != nil {
		return errs.Wrap(errs.Permission, err, "the state directory")
	}
	return sockpath.Remove(path)
}

// downFile says that a cluster went down completely.
const downFile = "down.done"

// writeClusterFile tells commands here that the cluster is up, by way of us.
func (f *front) writeClusterFile(addrs ...string) error {
	c := f.o.Config
	b, err := json.MarshalIndent(wire.ClusterFile{Version: 1, Name: c.Name, SpecPath: c.SpecPath, Build: f.o.Version, Addrs: addrs,
		Host: f.host, PID: os.Getpid(), Started: time.Now().UnixNano()}, "", "  ")
	if err != nil {
		return errs.Wrap(errs.Internal, err, "%s", clusterFile)
	}
	return writeWhole(filepath.Join(f.dir, clusterFile), append(b, '\n'))
}

// writeWhole replaces a file of the state directory.
func writeWhole(path string, b []byte) error {
	err := os.WriteFile(path+".new", b, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the state directory")
	}
	return nil
}

// keep has the head run and is connected to it, again and again, until the cluster is
// down (nil) or ctx ends.
func (f *front) keep(ctx context.Context) error {
	for rest := firstFrontRest; ; {
		f.mu.Lock()
		with := f.sittings
		f.mu.Unlock()
		down, met, err := f.once(ctx)
		switch {
		case down && err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case met: // it may only have restarted, or be down
			f.log.Info("the connection to the head ended", "err", err)
			rest = firstFrontRest
			continue
		case !f.failed(with, err): // somebody has sat down since
			continue
		}
		f.log.Warn("the head is not connected", "place", f.now().place(), "err", err)
		t := time.NewTimer(rest)
		select {
		case <-t.C:
			rest = min(2*rest, lastFrontRest)
		case <-f.poke:
			rest = firstFrontRest
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (f *front) met(s *session.Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur, f.err, f.tries, f.stuck, f.heard = s, nil, 0, nil, time.Now()
	close(f.changed)
	f.changed = make(chan struct{})
}

// failed notes why a try failed, unless it began before the newest sitting: what it lacked
// may be there now.
func (f *front) failed(sitting int, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sitting != f.sittings {
		return false
	}
	f.cur, f.err = nil, err
	f.tries++
	close(f.changed)
	f.changed = make(chan struct{})
	return true
}

// once has the head run and serves it as long as the connection lasts; met says that
// there was one, down that its cluster is down and that the record is here.
func (f *front) once(ctx context.Context) (down, met bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.giveUp = cancel
	dropped := f.ending && !f.post.Begun
	f.mu.Unlock()
	if dropped {
		return true, false, nil
	}
	pool, err := f.place(ctx)
	if err != nil {
		return false, false, err
	}
	at, err := f.headAt(pool)
	if err != nil {
		return false, false, err
	}
	if err := f.keepPost(); err != nil { // before it may run there
		return false, false, err
	}
	down, err = f.hosts.StartHead(ctx, at)
	if err != nil {
		if !at.Copy && ctx.Err() == nil {
			err = cmp.Or(f.refuse(pool, err), err)
		}
		return false, false, err
	}
	if down {
		f.mu.Lock()
		f.ending = true
		f.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, fetchBound)
		defer cancel()
		return true, false, f.hosts.EndHead(ctx, at)
	}
	f.mu.Lock()
	f.post.Begun, f.heard = true, time.Now()
	f.mu.Unlock()
	if err := f.keepPost(); err != nil {
		return false, false, err
	}
	for _, name := range []string{downFile, wire.DownLeftFile} { // they went there with the record
		_ = os.Remove(filepath.Join(f.dir, name))
	}
	conn, err := f.hosts.JoinHead(ctx, at)
	if err != nil {
		return false, false, err
	}
	s, err := session.DialTrusted(ctx, conn, session.Config{Role: secure.RoleClient, Name: "broker", Version: f.o.Version, Log: f.log}, "head")
	if err != nil {
		return false, false, err
	}
	defer s.Close()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.heard = time.Now()
	}()
	return false, true, f.o.Broker.ServeHead(ctx, s, Where{Home: f.o.Config.Home, Binary: f.o.Config.Binary, Host: f.host, Again: f.again, Here: func() {
		f.log.Info("connected to the head", "place", pool.Places[0])
		f.met(s)
	}})
}

// head waits for the head, and says why it is not there.
func (f *front) head(ctx context.Context) (*session.Session, error) {
	return f.headWithin(ctx, headBound)
}

func (f *front) headWithin(ctx context.Context, bound time.Duration) (*session.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		f.mu.Lock()
		s, err, changed := f.cur, f.err, f.changed
		f.mu.Unlock()
		if s != nil && s.Err() == nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err == nil {
				err = errs.New(errs.Unavailable, "it is being connected to")
			}
			return nil, errs.Wrap(errs.Unavailable, err, "the head of cluster %s", f.o.Config.Name)
		}
	}
}

// serve relays the requests of a command.
func (f *front) serve(ctx context.Context, s *session.Session) {
	_ = s.Each(ctx, func(kind uint16, st *session.Stream) {
		defer st.Close()
		if kind != wire.StreamRequest {
			_ = st.CloseWith(errs.New(errs.Invalid, "streams of kind %d are not relayed to the head", kind))
			return
		}
		if err := f.request(ctx, st); err != nil {
			_ = st.WriteErr(err)
			_ = st.CloseWrite()
		}
	})
}

func (f *front) request(ctx context.Context, st *session.Stream) error {
	_ = st.SetReadDeadline(time.Now().Add(headBound))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return nil
	}
	_ = st.SetReadDeadline(time.Time{})
	switch typ {
	case wire.MsgAttend:
		var at wire.Attend
		if err := wire.Unmarshal(body, &at); err != nil {
			return err
		}
		return f.o.Desk.Attend(ctx, st, at, f.sat)
	case wire.MsgDown:
		if f.drop() {
			return st.WriteMsg(wire.MsgOK, wire.DownProgress{Final: true})
		}
	case wire.MsgInfo:
		if f.moving { // it will be there in a moment
			_, _ = f.headWithin(ctx, movingBound)
		}
		if i, ok := f.info(); ok {
			return st.WriteMsg(wire.MsgOK, i)
		}
	}
	head, err := f.head(ctx)
	if err != nil {
		return err
	}
	to, err := head.Open(ctx, wire.StreamRequest)
	if err != nil {
		return err
	}
	if err := to.WriteRaw(typ, body); err != nil {
		_ = to.Close()
		return err
	}
	if err := session.Relay(ctx, st, to); err != nil {
		f.log.Debug("relay ended", "err", err)
	}
	return nil
}

// drop ends a cluster whose head has not been started anywhere, if nothing is left of the
// life before either.
func (f *front) drop() bool {
	if _, err := os.Stat(filepath.Join(f.dir, wire.DownLeftFile)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.post.Begun || f.post.place() != "" || len(f.post.Left) > 0 {
		return false
	}
	f.ending = true
	f.giveUp()
	nudge(f.poke)
	return true
}

// sat: somebody can be asked now.
func (f *front) sat() {
	f.mu.Lock()
	f.err, f.tries = nil, 0
	f.sittings++
	f.mu.Unlock()
	nudge(f.poke)
	nudge(f.again)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// info is what there is to say of a cluster whose head is not there, as long as it is not
// known to be away: it is coming, or why it does not.
func (f *front) info() (i wire.ClusterInfo, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cur != nil && f.cur.Err() == nil {
		return i, false
	}
	c := f.o.Config
	i = wire.ClusterInfo{Name: c.Name, SpecPath: c.SpecPath, SpecText: c.SpecText, Version: f.o.Version, HeadHost: cmp.Or(f.post.place(), "not started yet"), Recovering: f.err == nil}
	for _, p := range c.Pools {
		pi := wire.PoolInfo{Name: p.Name, Backend: p.Backend, Min: p.Min, Max: p.Max, Wanted: max(p.Min, len(p.Places)), Pending: max(p.Min, 1), Apart: p.Apart}
		if f.err != nil {
			i.Trouble = "the head cannot be reached: " + errs.Line(f.err)
			pi.Pending = 0
			if p.Name == f.post.Pool.Name {
				if f.stuck != nil {
					i.Trouble += "; " + errs.Line(f.stuck)
				}
				f.failures(&pi, p)
			}
		}
		i.Pools = append(i.Pools, pi)
	}
	return i, true
}

// failures says which machines of a pool do not have the head, and why; mu must be held.
func (f *front) failures(pi *wire.PoolInfo, p wire.Pool) {
	for k, place := range p.Places {
		err := cmp.Or(f.bad[place], f.refused[place])
		if f.post.place() != "" { // the one that is to have it
			err = nil
			if place == f.post.place() {
				err = f.err
			}
		}
		if err == nil {
			continue
		}
		pi.Failures = append(pi.Failures, wire.NodeFailure{Node: wire.PlaceNode(p.Name, k), Place: place, Why: errs.Line(err), Tries: f.tries, Final: !errs.Retryable(err)})
		if errs.Retryable(err) {
			pi.Pending = 1
		}
	}
	pi.Failed = len(pi.Failures)
	if pi.Pending == 0 {
		pi.Wanted = pi.Failed // nothing else comes before the head
	}
}
