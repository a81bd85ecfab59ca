package broker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// LinkArgs is the hidden sub-command that StartLink runs: it calls LinkMain with Ready
// set to its standard output.
func LinkArgs(dir string) []string { return []string{"link", "--dir", dir} }

// startBound is how long a link may take from its start to its first session.
const startBound = 20 * time.Second

// StartLink starts a link for the cluster unless one serves already, and gives the path
// of its socket. Any number of processes may call it at once: the links that lose the
// race for the lock end at once, and all callers get the one that won.
func StartLink(ctx context.Context, dir, binary string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startBound)
	defer cancel()
	path := filepath.Join(dir, linkSocket)
	if answers(ctx, path) {
		return path, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", errs.Wrap(errs.Exhausted, err, "starting a link")
	}
	defer r.Close()
	log, err := os.OpenFile(filepath.Join(dir, linkLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		w.Close()
		return "", errs.Wrap(errs.Permission, err, "starting a link")
	}
	defer log.Close()
	// The link outlives this command: a session of its own, nothing of our terminal.
	cmd := exec.Command(binary, LinkArgs(dir)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = w, log, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "starting a link")
	}
	if err := readReady(ctx, r); err != nil {
		cmd.Process.Kill() // it may still be on its way; nobody would know of it
		cmd.Wait()
		return "", err
	}
	cmd.Process.Release()
	// The winner of a race may be between its lock and its socket.
	for wait := 5 * time.Millisecond; !answers(ctx, path); wait = min(2*wait, 200*time.Millisecond) {
		if err := pause(ctx, wait, "a link was started and does not answer"); err != nil {
			return "", err
		}
	}
	return path, nil
}

func answers(ctx context.Context, path string) bool {
	c, err := sockpath.Dial(ctx, path)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// readReady reads what LinkMain says by writeReady.
func readReady(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(r, 64<<10))
	switch {
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return errs.Wrap(errs.Internal, err, "starting a link")
	case err != nil:
		return errs.Wrap(errs.Unknown, context.Cause(ctx), "a link was started and says nothing")
	case bytes.Equal(b, []byte("ok\n")):
		return nil
	}
	if body, ok := bytes.CutPrefix(b, []byte("error ")); ok {
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err == nil {
			return w.FromWire()
		}
	}
	return errs.New(errs.Internal, "the link ended without a word").Hint("its log is in the cluster's directory, %s", linkLog)
}
