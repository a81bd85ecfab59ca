package session

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"launcher/internal/errs"
)

// maxSocketPath is what fits into a sockaddr_un on Linux with its final zero; on macOS it is less.
const maxSocketPath = 103

// SocketPath is where the socket that users know as path really is: path itself, or, when
// that is too long for a socket, a path in a short 0700 directory that depends on nothing
// but path and the user.
func SocketPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "socket %s", path)
	}
	if len(path) <= maxSocketPath {
		return path, nil
	}
	h := sha256.Sum256([]byte(path))
	name := filepath.Join("launcher-"+strconv.Itoa(os.Getuid()), hex.EncodeToString(h[:8])+".sock")
	for _, base := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/tmp"} {
		if p := filepath.Join(base, name); base != "" && len(p) <= maxSocketPath {
			return p, nil
		}
	}
	return filepath.Join("/tmp", name), nil
}

// at is the file beside a path too long that says where the socket is.
func at(path string) string { return path + ".at" }

// ResolveSocket finds the socket that ListenUnix made for path.
func ResolveSocket(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "socket %s", path)
	}
	if len(abs) <= maxSocketPath {
		return abs, nil
	}
	b, err := os.ReadFile(at(abs))
	if err != nil {
		return "", dialErr(err, path)
	}
	real := string(bytes.TrimSpace(b))
	if err := private(filepath.Dir(real)); err != nil {
		return "", err
	}
	return real, nil
}

// ListenUnix listens at path for processes of the same user. The socket is 0600. A socket
// whose process is gone is replaced; one that is served is errs.Exists.
func ListenUnix(path string) (*net.UnixListener, error) {
	real, err := SocketPath(path)
	if err != nil {
		return nil, err
	}
	abs, _ := filepath.Abs(path)
	if real != abs {
		if err := os.MkdirAll(filepath.Dir(real), 0o700); err != nil {
			return nil, errs.Wrap(errs.Permission, err, "a short directory for %s", path)
		}
		if err := private(filepath.Dir(real)); err != nil {
			return nil, err
		}
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: real, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		c, derr := net.DialTimeout("unix", real, time.Second)
		if derr == nil {
			c.Close()
			return nil, errs.New(errs.Exists, "another process serves %s", path)
		}
		if !errors.Is(derr, syscall.ECONNREFUSED) {
			return nil, errs.Wrap(errs.Exists, derr, "%s is in use", path)
		}
		if err := os.Remove(real); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errs.Wrap(errs.Permission, err, "a stale socket")
		}
		ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: real, Net: "unix"})
	}
	if err != nil {
		k := errs.Unavailable
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k = errs.NotFound
		case errors.Is(err, fs.ErrPermission):
			k = errs.Permission
		case errors.Is(err, syscall.EADDRINUSE):
			k = errs.Exists
		}
		return nil, errs.Wrap(k, err, "cannot listen at %s", path)
	}
	if err := os.Chmod(real, 0o600); err != nil {
		ln.Close()
		return nil, errs.Wrap(errs.Permission, err, "%s", path)
	}
	if real != abs {
		if err := os.WriteFile(at(abs), []byte(real+"\n"), 0o600); err != nil {
			ln.Close()
			return nil, errs.Wrap(errs.Permission, err, "cannot say where the socket of %s is", path)
		}
	}
	return ln, nil
}

// RemoveSocket takes away what ListenUnix left of path.
func RemoveSocket(path string) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return
	}
	if real, err := SocketPath(abs); err == nil && real != abs {
		if b, err := os.ReadFile(at(abs)); err == nil {
			real = string(bytes.TrimSpace(b))
		}
		os.Remove(real)
		os.Remove(at(abs))
		os.Remove(filepath.Dir(real)) // when it was the last
		return
	}
	os.Remove(abs)
}

// private refuses a directory that another user owns or may write to: /tmp is everyone's.
func private(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return errs.Wrap(errs.NotFound, err, "the directory of sockets")
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || st.Mode().Perm()&0o077 != 0 || ok && int(sys.Uid) != os.Getuid() {
		return errs.New(errs.Permission, "%s is not a private directory of yours", dir).
			Hint("remove it, or set XDG_RUNTIME_DIR to a directory that only you can enter")
	}
	return nil
}

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
