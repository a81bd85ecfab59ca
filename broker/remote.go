package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// Messages of StreamBroker. Whoever holds the rights opens one such stream to the head
// and says MsgBrokerHere on it; the stream lasts as long as it serves. The head then
// opens one per call on the same session: one request, one answer (MsgOK or MsgError), but
// for Watch, which is answered by MsgBrokerChanged until the head closes the stream.
const (
	MsgBrokerHere    uint16 = 0x0601 // here
	MsgBrokerSubmit  uint16 = 0x0602 // submitCall -> []backends.Alloc
	MsgBrokerFind    uint16 = 0x0603 // findCall -> map[string][]backends.Alloc
	MsgBrokerStatus  uint16 = 0x0604 // handlesCall -> []backends.Status
	MsgBrokerCancel  uint16 = 0x0605 // handlesCall -> nil
	MsgBrokerWatch   uint16 = 0x0606 // handlesCall -> MsgBrokerChanged ...
	MsgBrokerChanged uint16 = 0x0607 // int, an index of the handles
	MsgBrokerBring   uint16 = 0x0608 // wire.Into, then a tar stream (zstd) -> bundle.Came
)

type here struct {
	Host  string   // the machine that the broker runs on, for people
	Addrs []string // where nodes are passed on to a head that moves
}

type submitCall struct {
	Pool    wire.Pool
	Request backends.Request // without what the pool says, and without paths: those are the broker's
}

type findCall struct {
	Pool    wire.Pool
	Cluster string
	Tokens  []string
}

type handlesCall struct {
	Pool    wire.Pool
	Handles [][]byte
	Waiting bool // of a cancel: only those that have not begun
}

// Remote is the head's view of a broker on another machine, that comes and goes: of the
// laptop with the ssh keys while the head is on a host. While there is none, every call
// fails with errs.Unavailable, and is asked again.
type Remote struct {
	log *slog.Logger

	mu   sync.Mutex
	cur  *session.Session // guarded by mu, as is what follows
	host string
	at   []string  // its Addrs
	left time.Time // when the last one went away
}

// NewRemote makes a Remote that waits for its broker.
func NewRemote(log *slog.Logger) *Remote {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Remote{log: log}
}

// Attach serves the stream that a broker announces itself on, until it goes away. The
// newest one is asked: a laptop that was cut off is back before its old session is known
// to be dead. changed is told when it is there, each time that it says so, and when the
// last one has gone.
func (r *Remote) Attach(ctx context.Context, s *session.Session, st *session.Stream, changed func(here bool)) {
	defer st.Close()
	_ = st.SetReadDeadline(time.Now().Add(headBound))
	typ, body, err := st.ReadMsg()
	var h here
	if err == nil && typ != MsgBrokerHere {
		err = errs.New(errs.Corrupt, "a broker begins with message %#x", typ)
	}
	if err == nil {
		err = wire.Unmarshal(body, &h)
	}
	if err != nil {
		_ = st.WriteErr(err)
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	r.mu.Lock()
	r.cur, r.host, r.at = s, h.Host, h.Addrs
	r.mu.Unlock()
	r.log.Info("the broker is here", "host", h.Host)
	changed(true)
	_ = st.WriteMsg(wire.MsgOK, nil)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for { // what it could not do before, it may be able to do now
			if typ, _, err := st.ReadMsg(); err != nil || typ != MsgBrokerHere {
				return
			}
			changed(true)
		}
	}()
	select {
	case <-gone:
	case <-s.Done():
	case <-ctx.Done():
	}
	r.mu.Lock()
	last := r.cur == s
	if last {
		r.cur, r.left = nil, time.Now()
	}
	r.mu.Unlock()
	if last {
		r.log.Info("the broker is away", "host", h.Host)
		changed(false)
	}
	_ = st.Close()
	<-gone
}

// Away says since when new nodes must wait for the broker; "" while it is there.
func (r *Remote) Away() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cur != nil && r.cur.Err() == nil {
		return ""
	}
	return r.away().Error()
}

// away says why there is nobody to ask; mu must be held.
func (r *Remote) away() error {
	if r.host == "" {
		return errs.New(errs.Unavailable, "new nodes must wait for the broker, which has not come since the head was started").
			Hint("`launcher up SPEC` on the machine that brought the cluster up starts it")
	}
	left := r.left
	if left.IsZero() {
		left = time.Now()
	}
	return errs.New(errs.Unavailable, "new nodes must wait for the broker (on %s, away since %s)", r.host, left.Format("15:04:05")).
		Hint("`launcher up SPEC` on %s brings it back", r.host)
}

// Addrs are where nodes reach the broker's machine, and by it a head that moves.
func (r *Remote) Addrs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// Open opens a stream about a move of the head.
func (r *Remote) Open(ctx context.Context) (*session.Stream, error) {
	return r.openKind(ctx, wire.StreamHead)
}

func (r *Remote) open(ctx context.Context) (*session.Stream, error) {
	return r.openKind(ctx, wire.StreamBroker)
}

func (r *Remote) openKind(ctx context.Context, kind uint16) (*session.Stream, error) {
	r.mu.Lock()
	s := r.cur
	var err error
	if s == nil || s.Err() != nil {
		err = r.away()
	}
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Open(ctx, kind)
}

// call asks the broker one thing. What breaks on the way was perhaps done; every call of
// the contract may be repeated.
func (r *Remote) call(ctx context.Context, typ uint16, req, resp any) error {
	st, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })()
	if err := st.WriteMsg(typ, req); err != nil {
		return broken(ctx, err)
	}
	_ = st.CloseWrite()
	got, body, err := st.ReadMsg()
	if err != nil {
		return broken(ctx, err)
	}
	return readAnswer(got, body, resp)
}

func readAnswer(typ uint16, body []byte, resp any) error {
	switch typ {
	case wire.MsgError:
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return err
		}
		return w.FromWire()
	case wire.MsgOK:
		return wire.Unmarshal(body, resp)
	}
	return errs.New(errs.Corrupt, "the broker answers with message %#x", typ)
}

func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errs.Wrap(errs.Unknown, context.Cause(ctx), "asking the broker")
	}
	return errs.Wrap(errs.Unavailable, err, "the broker went away in the middle of a call")
}

// Submit is Broker.Submit where the broker is.
func (r *Remote) Submit(ctx context.Context, p wire.Pool, req backends.Request) (allocs []backends.Alloc, err error) {
	err = r.call(ctx, MsgBrokerSubmit, submitCall{Pool: p, Request: req}, &allocs)
	return allocs, err
}

// Find is Broker.Find where the broker is.
func (r *Remote) Find(ctx context.Context, p wire.Pool, cluster string, tokens []string) (found map[string][]backends.Alloc, err error) {
	err = r.call(ctx, MsgBrokerFind, findCall{Pool: p, Cluster: cluster, Tokens: tokens}, &found)
	return found, err
}

// Status is Broker.Status where the broker is.
func (r *Remote) Status(ctx context.Context, p wire.Pool, handles [][]byte) (st []backends.Status, err error) {
	err = r.call(ctx, MsgBrokerStatus, handlesCall{Pool: p, Handles: handles}, &st)
	if err == nil && len(st) != len(handles) {
		err = errs.New(errs.Internal, "the broker answered %d of %d questions", len(st), len(handles))
	}
	return st, err
}

// Cancel is Broker.Cancel where the broker is.
func (r *Remote) Cancel(ctx context.Context, p wire.Pool, handles [][]byte, waiting bool) error {
	var none any
	return r.call(ctx, MsgBrokerCancel, handlesCall{Pool: p, Handles: handles, Waiting: waiting}, &none)
}

// Watch is Broker.Watch where the broker is. It returns an error when the broker goes.
func (r *Remote) Watch(ctx context.Context, p wire.Pool, handles [][]byte, changed chan<- int) error {
	st, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	if err := st.WriteMsg(MsgBrokerWatch, handlesCall{Pool: p, Handles: handles}); err != nil {
		return broken(ctx, err)
	}
	for {
		typ, body, err := st.ReadMsg()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return broken(ctx, err)
		}
		var i int
		if typ == MsgBrokerChanged {
			err = wire.Unmarshal(body, &i)
		} else {
			err = readAnswer(typ, body, &i)
		}
		if err != nil {
			return err
		}
		select {
		case changed <- i:
		case <-ctx.Done():
			return nil
		}
	}
}

// Where says what of a request belongs to the broker's machine.
type Where struct {
	Home   string                // LAUNCHER_HOME
	Binary string                // the launcher binary
	Host   string                // for people
	Here   func()                // called when the head knows of us; may be nil
	Addrs  []string              // where nodes are passed on to a head that moves
	Head   func(*session.Stream) // serves a stream on which the head moves; nil = it does not
	Again  <-chan struct{}       // something has changed for the better: what failed is worth another try
}

// ServeHead does what the head at the other end of s asks, until the session ends or
// ctx does.
func (b *Broker) ServeHead(ctx context.Context, s *session.Session, w Where) error {
	st, err := s.Open(ctx, wire.StreamBroker)
	if err != nil {
		return err
	}
	defer st.Close()
	_ = st.SetDeadline(time.Now().Add(headBound))
	if err := st.WriteMsg(MsgBrokerHere, here{Host: w.Host, Addrs: w.Addrs}); err != nil {
		return err
	}
	typ, body, err := st.ReadMsg()
	if err != nil {
		return err
	}
	var none any
	if err := readAnswer(typ, body, &none); err != nil {
		return err
	}
	_ = st.SetDeadline(time.Time{})
	if w.Here != nil {
		w.Here()
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	context.AfterFunc(s.Context(), cancel) // calls end with the session
	wg.Go(func() {
		for {
			select {
			case <-w.Again:
				_ = st.WriteMsg(MsgBrokerHere, here{Host: w.Host})
			case <-ctx.Done():
				return
			}
		}
	})
	return s.Each(ctx, func(kind uint16, call *session.Stream) {
		defer call.Close()
		if kind == wire.StreamHead && w.Head != nil {
			w.Head(call)
			return
		}
		if kind != wire.StreamBroker {
			_ = call.CloseWith(errs.New(errs.Invalid, "a broker does not take streams of kind %d", kind))
			return
		}
		b.serveCall(ctx, call, w)
	})
}

// serveCall does one thing that the head asks. A head that does not wait for it any more
// closes the stream.
func (b *Broker) serveCall(ctx context.Context, st *session.Stream, w Where) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-st.Unwanted():
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = st.SetReadDeadline(time.Now().Add(headBound))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return
	}
	v, err := b.perform(ctx, st, typ, body, w)
	switch {
	case errors.Is(err, errNoAnswer):
		return
	case err != nil:
		_ = st.WriteErr(err)
	default:
		_ = st.WriteMsg(wire.MsgOK, v)
	}
	_ = st.CloseWrite()
}

var errNoAnswer = errors.New("nobody waits")

func (b *Broker) perform(ctx context.Context, st *session.Stream, typ uint16, body []byte, w Where) (any, error) {
	switch typ {
	case MsgBrokerSubmit:
		var c submitCall
		if err := wire.Unmarshal(body, &c); err != nil {
			return nil, err
		}
		c.Request.Home, c.Request.Binary = w.Home, w.Binary
		return b.Submit(ctx, c.Pool, c.Request)
	case MsgBrokerFind:
		var c findCall
		if err := wire.Unmarshal(body, &c); err != nil {
			return nil, err
		}
		return b.Find(ctx, c.Pool, c.Cluster, c.Tokens)
	case MsgBrokerBring:
		return takeOutputs(ctx, st, body, w.Home)
	}
	var c handlesCall
	if err := wire.Unmarshal(body, &c); err != nil {
		return nil, err
	}
	switch typ {
	case MsgBrokerStatus:
		return b.Status(ctx, c.Pool, c.Handles)
	case MsgBrokerCancel:
		return nil, b.Cancel(ctx, c.Pool, c.Handles, c.Waiting)
	case MsgBrokerWatch:
		return nil, b.serveWatch(ctx, st, c)
	}
	return nil, errs.New(errs.Invalid, "a broker does not know message %#x", typ)
}

func (b *Broker) serveWatch(ctx context.Context, st *session.Stream, c handlesCall) error {
	changed, done := make(chan int), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		done <- b.Watch(ctx, c.Pool, c.Handles, changed)
		close(changed)
	}()
	var broke error
	for i := range changed { // to the end: Watch may be about to send
		if broke == nil {
			if broke = st.WriteMsg(MsgBrokerChanged, i); broke != nil {
				cancel()
			}
		}
	}
	if err := <-done; err != nil && broke == nil && ctx.Err() == nil {
		return err
	}
	return errNoAnswer
}
