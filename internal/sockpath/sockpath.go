// Package sockpath places Unix sockets. A socket's path may have at most 107 bytes, and
// state directories can be deeper than that: then the socket lies in a short directory
// of its own, 0700, under $XDG_RUNTIME_DIR or /tmp, and the long place holds a file
// NAME.sock.at with the short path. Listen, Dial and Remove all take the long path.
package sockpath

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"launcher/internal/errs"
)

// Max is the longest path that the kernel takes (sun_path has 108 bytes with the zero;
// 104 where it is shorter, on macOS, is checked by the kernel itself).
const Max = 107

// suffix names the file that says where a socket with a long path really is.
const suffix = ".at"

// Listen makes the socket for path, 0600, and listens on it. What a dead process left
// there is replaced; a living one is errs.Exists. Closing the listener does not remove
// the socket, so that it may be handed on: Remove does.
func Listen(path string) (*net.UnixListener, error) {
	at, err := Prepare(path)
	if err != nil {
		return nil, err
	}
	if answers(at) {
		return nil, errs.New(errs.Exists, "%s: another process answers there", path)
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.Wrap(errs.Permission, err, "cannot replace the socket %s", path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "cannot listen on %s", path)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(at, 0o600); err != nil {
		_ = l.Close()
		return nil, errs.Wrap(errs.Permission, err, "cannot listen on %s", path)
	}
	return l, nil
}

// Answers reports whether a process listens at path, one that is stopped or slow too:
// nothing is waited for.
func Answers(path string) bool {
	at, err := Find(path)
	return err == nil && answers(at)
}

func answers(at string) bool {
	c, err := net.Dial("unix", at)
	if err != nil {
		return errors.Is(err, syscall.EAGAIN) // its queue of callers is full
	}
	_ = c.Close()
	return true
}

// Dial connects to the socket that Listen made for path.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	at, err := Find(path)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", at)
	if err != nil {
		kind := errs.Unavailable
		if errors.Is(err, fs.ErrNotExist) {
			kind = errs.NotFound
		}
		return nil, errs.Wrap(kind, err, "cannot connect to %s", path)
	}
	return c.(*net.UnixConn), nil
}

// Prepare gives the path to bind for the long path, having made the short directory and
// the .at file when one is needed. Listen calls it; it is for those who bind themselves.
func Prepare(path string) (string, error) {
	if len(path) <= Max {
		return path, nil
	}
	if at, err := Find(path); err == nil {
		if ours(filepath.Dir(at)) {
			return at, nil
		}
	}
	dir, err := shortDir(path)
	if err != nil {
		return "", err
	}
	at := filepath.Join(dir, filepath.Base(path))
	if len(at) > Max {
		at = filepath.Join(dir, "s")
	}
	if len(at) > Max {
		return "", errs.New(errs.Invalid, "%s: no place short enough for a socket", path).Hint("set XDG_RUNTIME_DIR to a short directory of your own, or move LAUNCHER_HOME")
	}
	tmp := path + suffix + ".tmp" + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(tmp, []byte(at+"\n"), 0o600); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "cannot note where the socket is")
	}
	if err := os.Rename(tmp, path+suffix); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "cannot note where the socket is")
	}
	return at, nil
}

// Find gives the path to connect to for the long path.
func Find(path string) (string, error) {
	if len(path) <= Max {
		return path, nil
	}
	b, err := os.ReadFile(path + suffix)
	if err != nil {
		kind := errs.Unavailable
		if errors.Is(err, fs.ErrNotExist) {
			kind = errs.NotFound
		}
		return "", errs.Wrap(kind, err, "cannot connect to %s", path)
	}
	at := strings.TrimSpace(string(b))
	if !filepath.IsAbs(at) || len(at) > Max {
		return "", errs.New(errs.Corrupt, "%s does not hold the path of a socket", path+suffix)
	}
	return at, nil
}

// Remove takes the socket for path away, and the short directory if it had one. That
// there is none is no error.
func Remove(path string) error {
	at, err := Find(path)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = os.Remove(at)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if at != path {
		// Whoever may not write the note does not own the directory either.
		if err2 := os.Remove(path + suffix); err == nil && !errors.Is(err2, fs.ErrNotExist) {
			err = err2
		}
		if filepath.Dir(at) != filepath.Dir(path) && ours(filepath.Dir(at)) {
			_ = os.Remove(filepath.Dir(at)) // not when something else is in it
		}
	}
	return err
}

// shortDir makes the directory for the socket of path.
func shortDir(path string) (string, error) {
	h := sha256.Sum256([]byte(path))
	name := "launcher-" + strconv.Itoa(os.Getuid()) + "-" + hex.EncodeToString(h[:6])
	var last error
	for _, base := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/tmp"} {
		if !filepath.IsAbs(base) || len(base) > 60 {
			continue
		}
		dir := filepath.Join(base, name)
		if last = os.Mkdir(dir, 0o700); last == nil || ours(dir) {
			return dir, nil
		}
		// Somebody else has that name: take one that nobody can know.
		if dir, last = os.MkdirTemp(base, "launcher-"); last == nil {
			return dir, nil
		}
	}
	return "", errs.Wrap(errs.Unavailable, last, "no short directory for the socket %s", path)
}

// ours reports whether dir is a real directory that only this user can enter.
func ours(dir string) bool {
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Mode().Perm()&0o077 != 0 {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Getuid()
}
