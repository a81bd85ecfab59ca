package broker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// LinkOptions say what a link is for.
type LinkOptions struct {
	Dir     string        // the cluster's state directory
	Ready   io.Writer     // gets one line, "ok" or the error, when that is known; nil = nobody asks
	Log     *slog.Logger  // nil = discard
	Idle    time.Duration // ends after so long without anyone connected; 0 = 30 min
	Version string        // build version; "" = the binary's own
}

const (
	// headBound is how long a request waits for a head that is away before it is refused.
	headBound = 10 * time.Second
	// firstBound is the same for the link's start: somebody waits to hear that there is no head.
	firstBound = 5 * time.Second
	// awayBound is how long a link goes on looking for its head.
	awayBound = 30 * time.Second
)

// LinkMain is the link's process. It returns nil when it was idle, when another link
// serves the cluster already, or when ctx ended.
func LinkMain(ctx context.Context, o LinkOptions) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Idle <= 0 {
		o.Idle = 30 * time.Minute
	}
	ready := sync.OnceFunc(func() { writeReady(o.Ready, err) })
	defer ready()
	lock, err := takeLock(filepath.Join(o.Dir, linkLock))
	if errs.Is(err, errs.Exists) {
		err = nil // the other one serves; whoever asked connects to it
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	c, err := ReadClusterFile(o.Dir)
	if err != nil {
		return err
	}
	ca, err := secure.LoadAuthority(o.Dir)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	id, err := ca.IssueSelf(secure.RoleClient, secure.CleanName("link-"+host), 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { id.Keep(ctx, ca.Renewer(id.Subject(), 0), o.Log) })

	up := &uplink{dir: o.Dir, cfg: session.Config{Identity: id, Version: o.Version, Log: o.Log}, log: o.Log}
	defer up.close()
	first, done := context.WithTimeout(ctx, firstBound)
	_, err = up.session(first)
	done()
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "cluster %s", c.Name)
	}
	path := filepath.Join(o.Dir, linkSocket)
	ln, err := sockpath.Listen(path)
	if err != nil {
		return err
	}
	defer sockpath.Remove(path)
	ready()

	wg.Go(func() {
		up.keep(ctx)
		cancel()
	})
	l := &link{up: up, log: o.Log, idle: time.AfterFunc(o.Idle, cancel), after: o.Idle}
	defer l.idle.Stop()
	o.Log.Info("link serves", "cluster", c.Name, "socket", path)
	local := session.Config{Cluster: c.Name, Role: secure.RoleClient, Name: "link", Version: o.Version, Log: o.Log}
	return session.ServeUnix(ctx, ln, local, l.serve)
}

// writeReady tells whoever started the link how it went.
func writeReady(w io.Writer, err error) {
	if w == nil {
		return
	}
	if err == nil {
		fmt.Fprintln(w, "ok")
	} else {
		w.Write(append([]byte("error "), wire.Marshal(errs.ToWire(err))...))
	}
	if c, ok := w.(io.Closer); ok {
		c.Close()
	}
}

// link relays requests of this machine to the head.
type link struct {
	up    *uplink
	log   *slog.Logger
	after time.Duration

	mu    sync.Mutex
	users int // sessions; guarded by mu
	idle  *time.Timer
}

func (l *link) count(d int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users += d; l.users == 0 {
		l.idle.Reset(l.after)
	} else {
		l.idle.Stop()
	}
}

// serve relays the streams of one command or program, each on a stream of its own.
func (l *link) serve(ctx context.Context, s *session.Session) {
	l.count(1)
	defer l.count(-1)
	_ = s.Each(ctx, func(kind uint16, st *session.Stream) { l.relay(ctx, kind, st) })
}

func (l *link) relay(ctx context.Context, kind uint16, st *session.Stream) {
	defer st.Close()
	if kind != wire.StreamRequest {
		st.CloseWith(errs.New(errs.Invalid, "a link relays requests to the head, not streams of kind %d", kind))
		return
	}
	wait, cancel := context.WithTimeout(ctx, headBound)
	head, err := l.up.session(wait)
	cancel()
	if err != nil {
		st.CloseWith(err)
		return
	}
	to, err := head.Open(ctx, kind)
	if err != nil {
		st.CloseWith(err)
		return
	}
	if err := session.Relay(ctx, st, to); err != nil {
		l.log.Debug("relay ended", "err", err)
	}
}

// uplink keeps one session to the head, wherever it is.
type uplink struct {
	dir string
	cfg session.Config
	log *slog.Logger

	mu  sync.Mutex // held while dialling: one at a time is enough
	cur *session.Session
}

// session gives the session, dialling when there is none; it tries until ctx ends, since
// a head that restarts or moves is back within moments.
func (u *uplink) session(ctx context.Context) (*session.Session, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cur != nil && u.cur.Err() == nil {
		return u.cur, nil
	}
	wait := 50 * time.Millisecond
	for {
		s, err := u.dial(ctx)
		if err == nil {
			u.cur = s
			u.log.Info("connected", "head", s.Peer().Addr)
			return s, nil
		}
		if !errs.Retryable(err) || pause(ctx, wait, "") != nil {
			return nil, err
		}
		wait = min(2*wait, time.Second)
	}
}

// keep waits until ctx ends or the head is gone for good: down, or away for awayBound.
// A link without a head is of no use, and the next command starts another.
func (u *uplink) keep(ctx context.Context) {
	for {
		again, cancel := context.WithTimeout(ctx, awayBound)
		s, err := u.session(again)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				u.log.Info("the head is gone; the link ends", "err", err)
			}
			return
		}
		select {
		case <-s.Done():
		case <-ctx.Done():
			return
		}
	}
}

// dial reads where the head is each time: it may have moved.
func (u *uplink) dial(ctx context.Context) (*session.Session, error) {
	c, err := ReadClusterFile(u.dir)
	if err != nil {
		return nil, err
	}
	s, err := session.Dial(ctx, c.Addrs, u.cfg, secure.RoleHead)
	if err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "the head of cluster %s", c.Name).
			Hint("it was last on %s; `launcher up %s` brings it back if it is gone", c.Host, c.SpecPath)
	}
	return s, nil
}

func (u *uplink) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cur != nil {
		u.cur.Close()
	}
}
