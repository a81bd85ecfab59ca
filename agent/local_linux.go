package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"launcher/agent/core"
	"launcher/collectives"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/internal/sockpath"
	"launcher/shm"
	"launcher/wire"
	"launcher/wire/sdk"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const (
	sockName = "agent.sock"
	// firstBytes is how long a connection may wait before it says what it speaks.
	firstBytes = 10 * time.Second
	// maxLocal bounds the connections of programs on this node.
	maxLocal = 4096
	// relayBound is how long a request waits for the head to be there.
	relayBound = 5 * time.Second
	maxJoin    = 4 << 10
)

// localServer is agent.sock: programs of this user on this node ask and report there.
// The first bytes of a connection tell what it speaks: HTTP, a session (to the head), or
// frames to join a group.
type localServer struct {
	a    *agent
	l    net.Listener
	path string // as programs get it
	http *httpServer
	once logx.Once

	open    atomic.Int32
	nextReq atomic.Uint64
	mu      sync.Mutex
	waiting map[uint64]chan core.LocalReply // guarded by mu
}

// listenLocal takes the socket of an earlier agent up, or makes it.
func listenLocal(ctx context.Context, a *agent) (*localServer, error) {
	s := &localServer{a: a, waiting: map[uint64]chan core.LocalReply{}}
	path := filepath.Join(a.cfg.Dir, sockName)
	if f := a.take(sockName); f != nil {
		at, err := sockpath.Find(path)
		if err == nil {
			_, err = os.Lstat(at)
		}
		if err == nil {
			s.l, err = net.FileListener(f)
		}
		f.Close()
		if err != nil {
			a.log.Warn("the kept socket cannot be used", "err", err)
			s.l = nil
		}
	}
	if s.l == nil {
		l, err := sockpath.Listen(path)
		if err != nil {
			return nil, err
		}
		if f, err := l.File(); err == nil {
			a.storeFile(ctx, sockName, f)
			f.Close()
		}
		s.l = l
	}
	var err error
	// Programs get the path that the kernel takes: not all of them know of NAME.at.
	if s.path, err = sockpath.Find(path); err != nil {
		return nil, err
	}
	return s, nil
}

// serve takes connections until ctx ends.
func (s *localServer) serve(ctx context.Context) error {
	s.http = newHTTPServer(s)
	var g errgroup.Group
	g.Go(func() error { return s.http.serve(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = s.l.Close() })
	defer stop()
	pause := 5 * time.Millisecond
	for {
		c, err := s.l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return g.Wait()
		}
		if err != nil {
			s.a.log.Error("cannot accept a connection on the agent's socket", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		if s.open.Add(1) > maxLocal {
			s.open.Add(-1)
			c.Close()
			if s.once.First("full") {
				s.a.log.Warn("too many connections to the agent's socket; further ones are closed", "limit", maxLocal)
			}
			continue
		}
		g.Go(func() error {
			defer s.open.Add(-1)
			s.conn(ctx, c.(*net.UnixConn))
			return nil
		})
	}
}

// conn serves one connection.
func (s *localServer) conn(ctx context.Context, c *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	uid, pid, err := shm.PeerUID(c)
	if err != nil || uid != os.Getuid() {
		c.Close()
		if s.once.First("user") {
			s.a.log.Warn("another user's process connected to the agent's socket and was turned away", "uid", uid, "err", err)
		}
		return
	}
	first, sc, err := session.Sniff(c, 4, firstBytes)
	if err != nil || len(first) < 4 {
		c.Close() // a probe
		return
	}
	switch string(first) {
	case "GET ", "POST", "PUT ", "HEAD", "DELE", "OPTI", "PATC":
		s.http.give(ctx, sc)
	case "LNCH":
		cfg := session.Config{Cluster: s.a.cfg.Cluster, Role: secure.RoleAgent, Name: string(s.a.cfg.Node), Version: s.a.o.Version, Log: s.a.log}
		if err := session.ServeConn(ctx, sc, cfg, s.relay); err != nil {
			s.garbage(err)
		}
	case sdk.Greeting:
		sc, err := newSDKConn(c)
		if err == nil {
			err = s.a.sdk.conn(ctx, sc, pid)
		}
		if err != nil {
			s.garbage(err)
		}
	default:
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(firstBytes))
		if err := s.join(ctx, c, sc, pid); err != nil {
			s.garbage(err)
		}
	}
}

// garbage logs the first of what no program of ours sends.
func (s *localServer) garbage(err error) {
	if s.once.First(errs.KindOf(err).String()) {
		s.a.log.Warn("a connection to the agent's socket is refused; later ones like it are not logged", "err", err)
	}
}

// ask puts a request to the core and waits for the answer.
func (s *localServer) ask(ctx context.Context, ev core.Local) (core.LocalReply, error) {
	ev.Req = s.nextReq.Add(1)
	ch := make(chan core.LocalReply, 1)
	s.mu.Lock()
	s.waiting[ev.Req] = ch
	s.mu.Unlock()
	s.a.events.push(ev)
	select {
	case r := <-ch:
		if r.Err != nil {
			return r, r.Err.FromWire()
		}
		return r, nil
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiting, ev.Req)
		s.mu.Unlock()
		s.a.events.push(core.LocalGone{Req: ev.Req})
		return core.LocalReply{}, context.Cause(ctx)
	}
}

// reply hands an answer of the core to who waits for it.
func (s *localServer) reply(r core.LocalReply) {
	s.mu.Lock()
	ch := s.waiting[r.Req]
	delete(s.waiting, r.Req)
	s.mu.Unlock()
	if ch != nil {
		ch <- r
	}
}

// relay passes the requests of a command or an SDK on to the head.
func (s *localServer) relay(ctx context.Context, in *session.Session) {
	_ = in.Each(ctx, func(kind uint16, st *session.Stream) {
		if kind != wire.StreamRequest {
			_ = st.CloseWith(errs.New(errs.Permission, "an agent passes requests on to the head, not streams of kind %d", kind))
			return
		}
		s.relayOne(ctx, st)
	})
}

func (s *localServer) relayOne(ctx context.Context, st *session.Stream) {
	wait, cancel := context.WithTimeout(ctx, relayBound)
	defer cancel()
	head, err := s.a.head.session(wait)
	if err == nil {
		var out *session.Stream
		if out, err = head.Open(wait, wire.StreamRequest); err == nil {
			_ = session.Relay(ctx, st, out)
			return
		}
	}
	_ = st.SetWriteDeadline(time.Now().Add(relayBound))
	_ = st.WriteErr(err)
	_ = st.Close()
}

// join serves a rank that wants its group's memory. The connection is for that alone.
func (s *localServer) join(ctx context.Context, c *net.UnixConn, in io.Reader, pid int) error {
	typ, body, err := wire.ReadFrame(io.LimitReader(in, maxJoin))
	if err == nil && typ != collectives.MsgJoin {
		err = errs.New(errs.Corrupt, "a frame of type %#x", typ)
	}
	if err != nil {
		err = errs.Wrap(errs.Corrupt, err, "what came on the agent's socket is neither HTTP, a session, nor a request to join a group")
		_ = writeFrameErr(c, err)
		return err
	}
	var req collectives.JoinRequest
	if err := json.Unmarshal(body, &req); err != nil {
		err := errs.Wrap(errs.Invalid, err, "a request to join a group that is no JSON")
		_ = writeFrameErr(c, err)
		return err
	}
	ans, f, err := s.joinGroup(ctx, req.Proc, pid)
	if err != nil {
		_ = writeFrameErr(c, err)
		return nil // the program's own affair, and told to it
	}
	b, err := json.Marshal(ans)
	if err == nil {
		err = shm.SendFDs(c, wire.AppendFrame(nil, collectives.MsgJoined, b), f)
	}
	if err != nil {
		s.a.log.Warn("a rank did not get its group's memory", "proc", req.Proc, "err", err)
	}
	return nil
}

func (s *localServer) joinGroup(ctx context.Context, name string, pid int) (*collectives.JoinAnswer, *os.File, error) {
	p, err := parseProc(name)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, firstBytes)
	defer cancel()
	r, err := s.ask(ctx, core.Local{Proc: p, Op: core.OpJoin})
	if err != nil {
		return nil, nil, err
	}
	return s.a.groups.join(r.Join, p, pid)
}

// writeFrameErr answers a joiner with {"kind","msg","hints"}.
func writeFrameErr(w io.Writer, err error) error {
	b, e := json.Marshal(errorBody(err))
	if e != nil {
		return e
	}
	return wire.WriteFrame(w, wire.MsgError, b)
}

type errorJSON struct {
	Kind  string   `json:"kind"`
	Msg   string   `json:"msg"`
	Hints []string `json:"hints,omitempty"`
}

func errorBody(err error) errorJSON {
	return errorJSON{Kind: errs.KindOf(err).String(), Msg: err.Error(), Hints: errs.HintsOf(err)}
}

// oneListener gives the HTTP server connections that were accepted elsewhere.
type oneListener struct {
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return l.addr }

// isClosed reports whether an error of http.Server.Serve is the orderly end.
func isClosed(err error) bool {
	return errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed)
}
