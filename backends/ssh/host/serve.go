package host

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"launcher/backends"
	"launcher/backends/local"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// Server is the host's end.
type Server struct {
	root   string // of everything of launcher's on this host
	name   string
	binary string

	mu       sync.Mutex
	clusters map[string]*local.Backend // by ID; guarded by mu
	routes   map[string]*door          // by path; guarded by mu
}

// idRE: what comes over the wire becomes a path.
var (
	idRE   = regexp.MustCompile(`^[0-9a-f]{8,64}$`)
	nameRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$`)
)

// NewServer serves the nodes that are this host's below root; binary is what they run.
func NewServer(root, binary string) (*Server, error) {
	name, err := os.Hostname()
	if err != nil || !nameRE.MatchString(name) {
		return nil, errs.New(errs.Invalid, "the host's own name %q cannot name a directory", name)
	}
	if !filepath.IsAbs(root) || !filepath.IsAbs(binary) {
		return nil, errs.New(errs.Invalid, "%q and %q must be absolute paths", root, binary)
	}
	return &Server{root: filepath.Clean(root), name: name, binary: binary, clusters: map[string]*local.Backend{}, routes: map[string]*door{}}, nil
}

// Serve answers on conn until it ends or ctx does.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	return session.ServeTrusted(ctx, conn, session.Config{Name: s.name}, func(ctx context.Context, se *session.Session) {
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			kind, st, err := se.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := s.stream(ctx, kind, st); err != nil {
					_ = st.WriteErr(err)
				}
				_ = st.Close()
			})
		}
	})
}

// stream serves one request.
func (s *Server) stream(ctx context.Context, kind uint16, st *session.Stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a caller who gives up ends what it asked for
		select {
		case <-st.Unwanted():
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = st.SetReadDeadline(time.Now().Add(time.Minute))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return err
	}
	switch kind {
	case kindWatch:
		var m handles
		if typ != msgWatch {
			return errs.New(errs.Invalid, "a watch begins with a message of type %d", typ)
		}
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		return s.watch(ctx, st, m)
	case kindHead:
		return s.head(ctx, st, typ, body)
	case kindCall:
		ctx, cancel := context.WithTimeout(ctx, callBound)
		defer cancel()
		v, err := s.call(ctx, st.Session().Context(), typ, body)
		if err != nil {
			return err
		}
		return st.WriteMsg(msgAnswer, v)
	}
	return errs.New(errs.Invalid, "there are no streams of kind %d", kind)
}

// call answers one; life is that of the connection, for what goes on after the answer.
func (s *Server) call(ctx, life context.Context, typ uint16, body []byte) (any, error) {
	switch typ {
	case msgLend:
		var m lend
		if err := wire.Unmarshal(body, &m); err != nil {
			return nil, err
		}
		return s.lend(life, m)
	case msgFacts:
		return Facts{Name: s.name, Version: session.BuildVersion(), Root: s.root, PID: os.Getpid(), Clock: time.Now().UnixNano()}, nil
	case msgSubmit:
		var m submit
		if err := wire.Unmarshal(body, &m); err != nil {
			return nil, err
		}
		return s.submit(ctx, m)
	case msgFind:
		var m find
		if err := wire.Unmarshal(body, &m); err != nil {
			return nil, err
		}
		b, err := s.cluster(m.ID)
		if err == nil {
			err = checkNames(m.Cluster)
		}
		if err != nil {
			return nil, err
		}
		return b.Find(ctx, m.Cluster, m.Tokens)
	case msgStatus, msgCancel, msgForget:
		var m handles
		if err := wire.Unmarshal(body, &m); err != nil {
			return nil, err
		}
		b, err := s.cluster(m.ID)
		if err == nil {
			err = s.check(m)
		}
		if err != nil {
			return nil, err
		}
		switch typ {
		case msgStatus:
			return status(ctx, b, m.Handles)
		case msgCancel:
			return struct{}{}, b.Cancel(ctx, m.Handles)
		}
		err = b.Forget(ctx, m.Handles)
		for end := time.Now().Add(pruneBound); !s.prune(m.ID) && time.Now().Before(end) && ctx.Err() == nil; {
			time.Sleep(10 * time.Millisecond)
		}
		return struct{}{}, err
	}
	return nil, errs.New(errs.Invalid, "the host does not know messages of type %d", typ)
}

// dir is where everything of a cluster lies on this host.
func (s *Server) dir(id string) string { return filepath.Join(s.root, "hosts", s.name, id) }

// cluster gives the backend for a cluster's nodes here.
func (s *Server) cluster(id string) (*local.Backend, error) {
	if !idRE.MatchString(id) {
		return nil, errs.New(errs.Invalid, "%q is no cluster's ID", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.clusters[id]
	if b == nil {
		b = local.New(s.dir(id))
		s.clusters[id] = b
	}
	return b, nil
}

func checkNames(names ...string) error {
	for _, n := range names {
		if !nameRE.MatchString(n) {
			return errs.New(errs.Invalid, "%q cannot be a name", n)
		}
	}
	return nil
}

// check refuses handles of anything outside the cluster's directory on this host: what is
// another host's, on a shared home, is not judged here.
func (s *Server) check(m handles) error {
	if len(m.Handles) > maxHandles {
		return errs.New(errs.Invalid, "%d handles in one request", len(m.Handles))
	}
	for _, h := range m.Handles {
		dir, node, ok := local.Place(h)
		if !ok || filepath.Clean(dir) != dir || !strings.HasPrefix(dir, s.dir(m.ID)+"/") || checkNames(string(node)) != nil {
			return errs.New(errs.Invalid, "not an allocation of this host (%s)", s.name)
		}
	}
	return nil
}

func (s *Server) submit(ctx context.Context, m submit) ([]backends.Alloc, error) {
	b, err := s.cluster(m.ID)
	if err != nil {
		return nil, err
	}
	r := m.Request
	names := []string{r.Cluster}
	for _, n := range r.Nodes {
		names = append(names, string(n))
	}
	if err := checkNames(names...); err != nil {
		return nil, err
	}
	if len(r.Nodes) != 1 || len(r.Epochs) != 1 || r.Token == "" {
		return nil, errs.New(errs.Invalid, "a host takes one node a submission, not %d", len(r.Nodes))
	}
	r.Home, r.Binary, r.Options = s.dir(m.ID), s.binary, nil // the whole host is one node
	// Where no direct way leads to the head, its connections go the way of ours.
	r.Join.Addrs = append(slices.Clone(r.Join.Addrs),
		session.RouteAddr(filepath.Join(s.dir(m.ID), "clusters", r.Cluster, "nodes", string(r.Nodes[0]), wire.RouteSocket)))
	return b.Submit(ctx, r)
}

func status(ctx context.Context, b *local.Backend, hs [][]byte) ([]Status, error) {
	st, err := b.Status(ctx, hs)
	if err != nil {
		return nil, err
	}
	out := make([]Status, len(st))
	for i := range st {
		out[i].Status = st[i]
		if st[i].State == backends.Failed || st[i].State == backends.Lost {
			out[i].Log = tail(filepath.Join(local.NodeDir(hs[i]), "agent.log"))
		}
	}
	return out, nil
}

// tail is the end of a file, whole lines.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if n, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, n-logTail), io.SeekStart)
	}
	b, _ := io.ReadAll(io.LimitReader(f, logTail))
	if len(b) == logTail {
		if i := strings.IndexByte(string(b), '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return string(b)
}

// pruneBound is how long those who write down the end of a node that has been forgotten may
// take to see that and to remove it again.
const pruneBound = 2 * time.Second

// prune removes directories that have become empty. It reports false where some are about
// to: neither nodes nor records of them are left in them.
func (s *Server) prune(id string) (done bool) {
	d := s.dir(id)
	nodes, _ := filepath.Glob(filepath.Join(d, "clusters", "*", "nodes"))
	for _, n := range nodes {
		if os.Remove(n) != nil && onlyEnds(n) {
			return false
		}
		_ = os.Remove(filepath.Dir(n))
	}
	if os.Remove(filepath.Join(d, "clusters")) == nil {
		_ = os.RemoveAll(filepath.Join(d, "cache")) // of the nodes that were here
	}
	for d != s.root {
		if os.Remove(d) != nil {
			break
		}
		d = filepath.Dir(d)
	}
	return true
}

// onlyEnds reports whether a directory of nodes has something, but no node and no record.
func onlyEnds(nodes string) bool {
	ents, err := os.ReadDir(nodes)
	return err == nil && !slices.ContainsFunc(ents, func(e os.DirEntry) bool { return e.IsDir() || filepath.Ext(e.Name()) == ".json" })
}

// watch tells of ends.
func (s *Server) watch(ctx context.Context, st *session.Stream, m handles) error {
	b, err := s.cluster(m.ID)
	if err == nil {
		err = s.check(m)
	}
	if err != nil {
		return err
	}
	_ = st.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, h := range m.Handles {
		wg.Go(func() { s.keepDoor(ctx, st.Session(), filepath.Join(local.NodeDir(h), wire.RouteSocket)) })
	}
	ch := make(chan int)
	done := make(chan error, 1)
	go func() { done <- b.Watch(ctx, m.Handles, ch) }()
	for {
		select {
		case i := <-ch:
			if err := st.WriteMsg(msgChanged, changed{i}); err != nil {
				cancel()
				<-done
				return nil
			}
		case err := <-done:
			return err
		}
	}
}
