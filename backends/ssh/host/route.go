package host

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire/session"
)

// door is a socket in a node's directory on which the node's processes ask for a way over
// this session: a line that says whom they want, then whatever the two say to each other
// (their own TLS).
type door struct {
	ln   net.Listener
	refs int // watches that want it; guarded by Server.mu
	wg   sync.WaitGroup
}

// doorPause is between two tries to open a door that the process of an earlier connection,
// which is about to notice its end, still holds.
const doorPause = 300 * time.Millisecond

// keepDoor has the door at path open until ctx ends.
func (s *Server) keepDoor(ctx context.Context, se *session.Session, path string) {
	for !s.openDoor(se, path) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(doorPause):
		}
	}
	<-ctx.Done()
	s.closeDoor(path)
}

func (s *Server) openDoor(se *session.Session, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.routes[path]; d != nil {
		d.refs++
		return true
	}
	ln, err := sockpath.Listen(path)
	if err != nil {
		return false
	}
	d := &door{ln: ln, refs: 1}
	s.routes[path] = d
	d.wg.Go(func() { d.serve(se, clusterOf(path)) })
	return true
}

func (s *Server) closeDoor(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.routes[path]
	if d.refs--; d.refs > 0 {
		return
	}
	delete(s.routes, path)
	_ = sockpath.Remove(path)
	_ = d.ln.Close()
}

// clusterOf is the cluster's name: a node's directory is clusters/NAME/nodes/NODE.
func clusterOf(path string) string {
	return filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(path))))
}

func (d *door) serve(se *session.Session, cluster string) {
	for {
		conn, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() {
			defer conn.Close()
			_ = forward(se.Context(), se, conn, cluster)
		})
	}
}

// forward carries one connection of a node over the session.
func forward(ctx context.Context, se *session.Session, conn net.Conn, cluster string) error {
	if uid, _, err := session.PeerCred(conn); err != nil || uid != os.Getuid() {
		return errs.New(errs.Permission, "user %d is refused: this socket belongs to a node of user %d", uid, os.Getuid())
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReaderSize(conn, 4096)
	line, err := in.ReadString('\n')
	if err != nil || len(line) > 512 {
		return errs.New(errs.Invalid, "no destination was named")
	}
	_ = conn.SetReadDeadline(time.Time{})
	st, err := se.Open(ctx, kindRoute)
	if err != nil {
		return err
	}
	if err := st.WriteMsg(msgRoute, route{cluster, strings.TrimSpace(line)}); err != nil {
		return err
	}
	join(ctx, st, &buffered{conn, in})
	return nil
}

// buffered is a connection of which something was read ahead.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// CloseWrite passes the end on.
func (b *buffered) CloseWrite() error { return closeWrite(b.Conn) }

func closeWrite(c net.Conn) error {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}

// join carries bytes between a stream and a connection until both directions have ended;
// it closes both.
func join(ctx context.Context, st *session.Stream, conn net.Conn) {
	defer conn.Close()
	defer st.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = st.Close()
		_ = conn.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.Copy(conn, st); err != nil {
			_ = conn.Close()
			return
		}
		_ = closeWrite(conn)
	})
	wg.Go(func() {
		if _, err := io.Copy(st, conn); err != nil {
			_ = st.CloseWith(errs.Wrap(errs.Unavailable, err, "the other end"))
			return
		}
		_ = st.CloseWrite()
	})
	wg.Wait()
}
