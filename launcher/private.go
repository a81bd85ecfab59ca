package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"launcher/configs"
	"launcher/internal/errs"
)

// private is a cluster that ends with the command that makes it.
type private struct {
	from string                           // who wrote its spec, for people
	spec func(own string) (string, error) // its text, for a cluster with this home
	wait time.Duration                    // how long its nodes may take to come
	told func(error) error                // what comes of an end with this error when the command was told to end
}

// privateHomes is where the homes of private clusters are.
func privateHomes(h string) string { return filepath.Join(h, "local") }

// privateStop is how long work has between SIGTERM and SIGKILL when its program is gone.
const privateStop = time.Second

// privateName is what a private cluster with this home is called where nothing else is said.
func privateName(own string) string { return "local-" + filepath.Base(own) }

// inPrivate makes a private cluster, has use work with it once its nodes are up, and ends it,
// without a trace.
func (a *app) inPrivate(ctx context.Context, p private, use func(d *stateDir, t target, own string) error) (err error) {
	runtime.LockOSThread() // the head's supervisor ends with the thread that started it
	h, err := home()
	if err != nil {
		return err
	}
	own, err := makePrivateHome(h)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(own); err == nil && rerr != nil {
			err = errs.Wrap(errs.Permission, rerr, "cannot remove %s", own)
		}
	}()
	text, err := p.spec(own)
	if err != nil {
		return err
	}
	cl, err := configs.ParseCluster(p.from, filepath.Join(own, "cluster.toml"), []byte(text))
	if err != nil {
		return err
	}
	if err := checkBackends(cl, own); err != nil {
		return err
	}
	quiet := newApp(a.in, io.Discard, io.Discard)
	d, err := quiet.prepare(ctx, own, cl, upOptions{})
	if err != nil {
		return err
	}
	defer d.unlock()
	d.tied = true
	t := d.target()
	t.up = true
	began := time.Now()
	if err = d.start(ctx); err == nil {
		if err = quiet.awaitPools(ctx, t, began, upOptions{wait: p.wait}); err == nil {
			err = use(d, t, own)
		}
	}
	if ctx.Err() != nil {
		err = p.told(err)
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), privateStop+downBound)
	defer cancel()
	if derr := quiet.takeDown(stop, t, downOptions{grace: privateStop}); err == nil {
		err = derr
	}
	return err
}

// makePrivateHome makes a home for this process: its number, and another if an earlier
// process, or one of another machine with the same home, left that one.
func makePrivateHome(h string) (string, error) {
	for try := 0; ; try++ {
		name := strconv.Itoa(os.Getpid())
		if try > 0 {
			name += "-" + strconv.Itoa(try)
		}
		own := filepath.Join(privateHomes(h), name)
		err := os.MkdirAll(filepath.Dir(own), 0o700)
		if err == nil {
			err = os.Mkdir(own, 0o700)
		}
		switch {
		case err == nil:
			// The SDK and what is compiled of it are shared with all of this user's clusters.
			if err := os.MkdirAll(filepath.Join(h, "cache"), 0o700); err != nil {
				return "", stateError(h, err)
			}
			if err := os.Symlink(filepath.Join(h, "cache"), filepath.Join(own, "cache")); err != nil {
				return "", stateError(h, err)
			}
			return own, nil
		case !os.IsExist(err) || try == 1000:
			return "", stateError(h, err)
		}
	}
}

// dropStale removes what the killed keepers of private clusters left, once nothing of
// those clusters runs.
func dropStale(h string) {
	homes, _ := filepath.Glob(filepath.Join(privateHomes(h), "*"))
	for _, own := range homes {
		recs, err := recordsBelow(own, true)
		if err != nil || len(recs) == 0 {
			continue // one that is being made
		}
		t := target{name: recs[0].name, dir: recs[0].dir, sock: filepath.Join(recs[0].dir, "head.sock")}
		if recs[0].up || !crashed(t.dir) && !wentDown(t.dir) || len(nodeProcesses(t)) > 0 {
			continue
		}
		if removeRemains(t) == nil {
			_ = os.RemoveAll(own)
		}
	}
}
