package session

import (
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"launcher/internal/errs"
)

// PeerCred is the user and the process at the other end of a unix socket, by the kernel's
// word. conn may wrap the socket (NetConn). pid is 0 where the system does not tell.
func PeerCred(conn net.Conn) (uid, pid int, err error) {
	for {
		if u, ok := conn.(*net.UnixConn); ok {
			return peerCred(u)
		}
		w, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return 0, 0, errs.New(errs.Internal, "%T is not a unix socket", conn)
		}
		conn = w.NetConn()
	}
}

// Sniff reads the first n bytes of a connection, waiting for at most d, and gives a
// connection that begins with them. Fewer than n come back, without an error, when the
// other side ended earlier.
func Sniff(conn net.Conn, n int, d time.Duration) ([]byte, net.Conn, error) {
	b := make([]byte, n)
	conn.SetReadDeadline(time.Now().Add(d))
	k, err := io.ReadFull(conn, b)
	conn.SetReadDeadline(time.Time{})
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil, err
	}
	return b[:k], &sniffed{Conn: conn, head: strings.NewReader(string(b[:k]))}, nil
}

type sniffed struct {
	net.Conn
	head *strings.Reader
}

func (s *sniffed) Read(p []byte) (int, error) {
	if s.head.Len() > 0 {
		return s.head.Read(p)
	}
	return s.Conn.Read(p)
}

// NetConn is the connection below.
func (s *sniffed) NetConn() net.Conn { return s.Conn }

// CloseWrite ends our half, where the connection has halves.
func (s *sniffed) CloseWrite() error {
	if cw, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
