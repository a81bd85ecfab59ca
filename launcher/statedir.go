package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"launcher/broker"
	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
)

// stateDir is a cluster's state directory while up works on it, under a lock that keeps
// two ups apart.
type stateDir struct {
	name    string
	dir     string
	home    string
	config  wire.HeadConfig
	lock    *os.File
	up      bool
	asItWas bool       // a cluster that turns out to be down is not begun anew
	tied    bool       // the head's supervisor ends with this process
	ended   chan error // set by start: the end of the head's supervisor
}

// prepare makes the state directory of a spec below the home h ready for a head, or finds
// that one runs.
func (a *app) prepare(ctx context.Context, h string, cl *configs.Cluster, o upOptions) (*stateDir, error) {
	bin, err := executable()
	if err != nil {
		return nil, err
	}
	clusters := filepath.Join(h, "clusters")
	if err := os.MkdirAll(clusters, 0o700); err != nil {
		return nil, stateError(h, err)
	}
	d := &stateDir{name: cl.Name, dir: filepath.Join(clusters, cl.Name), home: h}
	if d.lock, err = lockFile(ctx, filepath.Join(clusters, "."+cl.Name+".lock")); err != nil {
		return nil, stateError(h, err)
	}
	if err := d.claim(ctx, a, cl, o, bin); err != nil {
		d.unlock()
		return nil, err
	}
	return d, nil
}

// stateError explains that $LAUNCHER_HOME cannot be used.
func stateError(h string, err error) error {
	if k := errs.KindOf(err); k != errs.Unknown {
		return err
	}
	k := errs.Permission
	if !errors.Is(err, fs.ErrPermission) {
		k = errs.Unavailable
	}
	return errs.Wrap(k, err, "the state directory %s cannot be written", h).Hint("set LAUNCHER_HOME to a directory of yours on a disk with room")
}

// claim checks whose the name is and writes what a head needs.
func (d *stateDir) claim(ctx context.Context, a *app, cl *configs.Cluster, o upOptions, bin string) error {
	d.up = answers(d.dir)
	old, err := readHeadConfig(d.dir)
	switch {
	case errs.Is(err, errs.NotFound):
	case err != nil:
		return errs.Wrap(errs.Unknown, err, "cluster %s", d.name).Hint("`launcher forget %s` drops what is there", d.name)
	case old.SpecPath != cl.Path:
		if !o.replace {
			return errs.New(errs.Exists, "there is a cluster %q already, of %s", d.name, old.SpecPath).
				Hint(`give this one another name: name = "..." in %s`, cl.Path).
				Hint("or take the name over: --replace brings the other down and drops its record")
		}
		if err := d.takeOver(ctx, a, o); err != nil {
			return err
		}
	}
	if d.up {
		return nil
	}
	d.config = cl.HeadConfig(d.dir, d.home, bin)
	if os.Getenv("SLURM_JOB_ID") != "" { // in an allocation that is not ours the head ends with it
		d.config.Roam = ""
	}
	if _, err := os.Stat(filepath.Join(d.dir, broker.HeadAtFile)); err == nil || crashed(d.dir) && old.At == "" {
		d.config.At = old.At // a head stays where it is until its cluster is down
	}
	if _, moved := broker.ReadSeat(d.dir); moved {
		d.config.At, d.config.Roam = old.At, old.Roam
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return stateError(d.home, err)
	}
	if err := os.Chmod(d.dir, 0o700); err != nil {
		return stateError(d.home, err)
	}
	if _, err := secure.LoadAuthority(d.dir); errs.Is(err, errs.NotFound) {
		ca, err := secure.NewAuthority(d.name)
		if err != nil {
			return err
		}
		if err := ca.Save(d.dir); err != nil {
			return stateError(d.home, err)
		}
	} else if err != nil {
		return err
	}
	if err := writeWhole(filepath.Join(d.dir, "spec.toml"), []byte(cl.Text)); err != nil {
		return stateError(d.home, err)
	}
	if err := writeWhole(filepath.Join(d.dir, "head.config"), wire.Marshal(d.config)); err != nil {
		return stateError(d.home, err)
	}
	return nil
}

// takeOver ends the cluster that has the name and drops its record.
func (d *stateDir) takeOver(ctx context.Context, a *app, o upOptions) error {
	if d.up {
		if err := a.confirm(ctx, "cluster "+d.name+" of another spec is up; taking its name over ends it", o.yes); err != nil {
			return err
		}
	}
	if err := a.takeDown(ctx, d.target(), downOptions{}); err != nil {
		return err
	}
	a.noteLeft(d.target())
	d.up = false
	if err := os.RemoveAll(d.dir); err != nil {
		return stateError(d.home, err)
	}
	return nil
}

func (d *stateDir) target() target {
	return target{name: d.name, dir: d.dir, sock: filepath.Join(d.dir, "head.sock"), up: d.up}
}

func (d *stateDir) unlock() {
	if d.lock != nil {
		_ = d.lock.Close()
		d.lock = nil
	}
}

// exitTaken is how a head's supervisor ends when another one has the state directory.
const exitTaken = 75

// headBound is how long a head may take until it answers; replaying a long journal of a
// crashed cluster is part of it.
const headBound = 60 * time.Second

// start starts the head's supervisor, detached, and waits until the head answers.
func (d *stateDir) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, headBound)
	defer cancel()
	logPath := filepath.Join(d.dir, "head.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return stateError(d.home, err)
	}
	defer log.Close()
	mark, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return stateError(d.home, err)
	}
	before := wentDown(d.dir)
	for {
		taken, err := d.startOnce(ctx, log)
		switch {
		case err == nil:
			return nil
		case !before && wentDown(d.dir) && ctx.Err() == nil && errs.Is(err, errs.Unavailable):
			if d.asItWas {
				return nil
			}
			before = true // it first ended what it had been told to end; now it can begin anew
		case taken && ctx.Err() == nil: // by a supervisor that is dying, else it would have answered
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		case errors.Is(err, context.DeadlineExceeded):
			return errs.New(errs.Timeout, "the head of cluster %s does not answer after %s", d.name, headBound).Hint("its log is %s", logPath)
		case errs.Is(err, errs.Unavailable):
			return errs.New(errs.Internal, "the head of cluster %s did not start%s", d.name, tail(logPath, mark)).Hint("its log is %s", logPath)
		default:
			return err
		}
	}
}

// startOnce starts one supervisor. taken says that another holds the state directory.
func (d *stateDir) startOnce(ctx context.Context, log *os.File) (taken bool, err error) {
	cmd := exec.Command(d.config.Binary, "head-supervise", "--dir", d.dir)
	cmd.Dir = "/"
	cmd.Env = headEnv(d.home, d.name)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = detached()
	if d.tied {
		cmd.SysProcAttr = tied()
	}
	if err := cmd.Start(); err != nil {
		return false, errs.Wrap(errs.Internal, err, "cannot start the head")
	}
	ended := make(chan error, 1)
	d.ended = ended
	go func() { ended <- cmd.Wait() }() // outlives us when all is well: the head is not our child for long
	began := time.Now()
	for {
		c, err := dial(ctx, target{name: d.name, dir: d.dir, sock: filepath.Join(d.dir, "head.sock"), up: true})
		if err == nil {
			c.Close()
			return false, nil
		}
		if k := errs.KindOf(err); ctx.Err() == nil && k != errs.NotFound && !errs.Retryable(err) {
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-ended:
			return cmd.ProcessState.ExitCode() == exitTaken, errs.New(errs.Unavailable, "the head's supervisor ended")
		case <-time.After(pauseAfter(began)):
		}
	}
}

// pauseAfter is how long to wait before a look at what is on its way since a time: little
// beside what it takes anyway.
func pauseAfter(began time.Time) time.Duration {
	return min(max(time.Since(began)/16, time.Millisecond), 200*time.Millisecond)
}

// headEnv is this environment without what belongs to a run that we may be in. Name and
// home mark every process of the cluster, so that down finds them also without a head.
func headEnv(home, name string) []string {
	var out []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		if k == "LAUNCHER" || strings.HasPrefix(k, "LAUNCHER_") {
			continue
		}
		out = append(out, kv)
	}
	return append(out, "LAUNCHER_HOME="+home, "LAUNCHER_CLUSTER="+name)
}

// tail gives the last lines of a log from an offset, for an error message.
func tail(path string, from int64) string {
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) <= from {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b[from:])), "\n")
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "error: ")
	}
	return ": " + strings.Join(lines, "; ")
}

// writeWhole replaces a file, 0600, by rename.
func writeWhole(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
