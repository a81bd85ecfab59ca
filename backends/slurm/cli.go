package slurm

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
)

// callBound is how long one command of Slurm's may take. With the controller away each
// takes 9 to 18 s to say so.
const callBound = 60 * time.Second

// commands runs Slurm's commands, not too many of them, and counts them.
type commands struct {
	mu     sync.Mutex
	counts map[string]int // by command; guarded by mu
	next   time.Time      // when the next may start; guarded by mu
}

const (
	// Commands start so far apart, but for a few at once: a controller serves everybody.
	spacing = 500 * time.Millisecond
	burst   = 8
)

// turn waits until another command may start.
func (c *commands) turn(ctx context.Context, name string) error {
	c.mu.Lock()
	c.counts[name]++
	now := time.Now()
	if early := now.Add(-burst * spacing); c.next.Before(early) {
		c.next = early
	}
	c.next = c.next.Add(spacing)
	wait := c.next.Sub(now)
	c.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Unknown, context.Cause(ctx), "waiting to run %s", name)
	}
}

// environment is ours without what belongs to an allocation that we may be in, and
// without options of sbatch's that would go before those of the script. Times are printed
// as numbers.
func environment(own []string, q *request) (out []string) {
	named := map[string]string{}
	if q != nil { // the user's own defaults hold where the pool says nothing
		named = map[string]string{"SBATCH_ACCOUNT": q.Account, "SBATCH_PARTITION": q.Partition, "SBATCH_QOS": q.QOS, "SBATCH_RESERVATION": q.Reservation}
	}
	for _, kv := range own {
		k, _, _ := strings.Cut(kv, "=")
		v, known := named[k]
		switch {
		case k == "SLURM_CONF", k == "SLURM_CONF_SERVER", known && v == "":
		case strings.HasPrefix(k, "SLURM"), strings.HasPrefix(k, "SBATCH_"), strings.HasPrefix(k, "SRUN_"), strings.HasPrefix(k, "SQUEUE_"), strings.HasPrefix(k, "SCANCEL_"), strings.HasPrefix(k, "SACCT_"):
			continue
		case strings.HasPrefix(k, "LAUNCHER_") && k != "LAUNCHER_HOME" && k != "LAUNCHER_CLUSTER":
			continue
		}
		out = append(out, kv)
	}
	return append(out, "SLURM_TIME_FORMAT=%s")
}

// run runs a command to its end and gives what it printed.
func (c *commands) run(ctx context.Context, env []string, input string, name string, args ...string) (string, error) {
	out, _, err := c.both(ctx, env, input, name, args...)
	return out, err
}

// both is run that also gives what the command said beside it.
func (c *commands) both(ctx context.Context, env []string, input string, name string, args ...string) (output, said string, err error) {
	if err := c.turn(ctx, name); err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	errb := refusal{end: cancel}
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = env, strings.NewReader(input), &out, &errb, time.Second
	cmd.Dir = "/"
	if err = cmd.Run(); err == nil {
		return out.String(), errb.said.String(), nil
	}
	if errb.patient && name == "sbatch" {
		return out.String(), errb.said.String(), errs.New(errs.Exhausted, "sbatch: %s", strings.ReplaceAll(complaint(errb.said.String()), ", sleeping and retrying", "")).
			Hint("Slurm takes no more jobs now: it has as many as it may have (MaxJobCount) or is too busy; it is asked again by and by")
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", "", errs.New(errs.NotFound, "there is no %s on this machine", name).
			Hint("bring the cluster up on a login node of the Slurm cluster, with Slurm's commands on PATH")
	}
	if ctx.Err() != nil {
		return "", "", errs.Wrap(errs.Timeout, context.Cause(ctx), "%s does not answer", name)
	}
	words := complaint(errb.said.String())
	if words == "" {
		words = err.Error()
	}
	e := errs.New(kindOf(words), "%s: %s", name, words)
	if h := remedy(words); h != "" {
		e = e.Hint("%s", h)
	}
	return out.String(), errb.said.String(), e
}

// remedy is what can be done where the accounting refuses a job.
func remedy(said string) string {
	switch {
	case strings.Contains(said, "Invalid account"):
		return "`launcher doctor` with the spec says which accounts are yours, for `account`; who has none asks the site"
	case strings.Contains(said, "Invalid qos"):
		return "`launcher doctor` with the spec says which QOS are yours with that account, for `qos`"
	case strings.Contains(said, "accounting/QOS policy"):
		limit, _, _ := strings.Cut(said, ";")
		if limit = limited(limit); limit != "" {
			limit += ": "
		}
		return limit + "ask for less, or name another account or qos; it is asked again, less and less often"
	}
	return ""
}

// refusal is what a command says. sbatch that was refused for now asks again by itself, up
// to 15 times in two minutes, and says so only once: it is ended then, between two tries, since
// the head asks again, less often, and everybody hears why.
type refusal struct {
	said    bytes.Buffer // not embedded: it would be read into past Write
	end     func()
	patient bool
}

func (r *refusal) Write(p []byte) (int, error) {
	n, err := r.said.Write(p)
	if said := r.said.String(); !r.patient && (strings.Contains(said, "sleeping and retrying") || strings.Contains(said, "temporarily disabled, retrying")) {
		r.patient = true
		r.end()
	}
	return n, err
}

// complaint is what a command said, in a line: the first error is what is wrong.
func complaint(s string) string {
	var all []string
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		for _, p := range []string{"sbatch: ", "squeue: ", "scancel: ", "srun: ", "slurm_load_jobs ", "error: ", "fatal: "} {
			line = strings.TrimPrefix(line, p)
		}
		if line != "" {
			all = append(all, line)
		}
	}
	return strings.Join(all[:min(len(all), 3)], "; ")
}

// away is what a command says when it could not talk to the controller: whether the
// controller did what it was asked is not known.
var away = []string{"Unable to contact slurm controller", "Socket timed out", "Zero Bytes were transmitted", "Connection refused", "Connection timed out",
	"connect failure", "communication", "Communication", "standby mode", "Transport endpoint", "Unexpected message received", "resolve", "munge", "Munge"}

// full is what it says when there may be room later.
var full = []string{"submit limit", "limit", "Limit", "too many", "temporarily", "queue full", "is busy"}

func kindOf(said string) errs.Kind {
	has := func(list []string) bool {
		for _, s := range list {
			if strings.Contains(said, s) {
				return true
			}
		}
		return false
	}
	switch {
	case has(away):
		return errs.Unavailable
	case strings.Contains(said, "ermission denied"), strings.Contains(said, "Access/permission"):
		return errs.Permission
	case strings.Contains(said, "is invalid"): // "Requested time limit is invalid" is about no limit that time lifts
		return errs.Invalid
	case has(full):
		return errs.Exhausted
	}
	return errs.Invalid
}

// environ is a variable so that tests can stand in other shoes.
var environ = os.Environ
