package slurm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
)

// Allocation is the one that this process is in.
type Allocation struct {
	Job   string // its number
	Nodes int
}

// inside reports whether a pool's nodes are those of an allocation that we are in.
func inside(q request) (Allocation, bool) {
	if q.Partition != "" {
		return Allocation{}, false
	}
	return Inside()
}

// Inside tells of the Slurm allocation that this process is in, if it is in one.
func Inside() (a Allocation, ok bool) {
	for _, kv := range environ() {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "SLURM_JOB_ID":
			a.Job = v
		case "SLURM_JOB_NUM_NODES":
			a.Nodes, _ = strconv.Atoi(v)
		}
	}
	return a, a.Job != "" && a.Nodes > 0
}

// step is the command of a job that is a step in an allocation.
func (j job) step() []string { return step(len(j.nodes), j.binary, j.path(nodesExt)) }

// startStep starts the agents as a step of the allocation that we are in. srun is what
// holds them: when it is killed they are too.
func (b *Backend) startStep(a Allocation, j job, rec *record) error {
	if len(j.nodes) > a.Nodes {
		rec.forget()
		return errs.New(errs.Exhausted, "%s are asked for, and the allocation, Slurm job %s, has %d", plural(len(j.nodes), "node"), a.Job, a.Nodes)
	}
	log, err := os.OpenFile(j.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return diskError(err, j.log)
	}
	defer log.Close()
	words := j.step()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = "/", log, log, stepEnvironment(environ())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	b.cli.count("srun")
	if err := cmd.Start(); err != nil {
		rec.forget()
		return errs.Wrap(errs.NotFound, err, "starting srun").Hint("Slurm's commands must be on PATH inside the allocation")
	}
	start, _ := startOf(cmd.Process.Pid)
	rec.Step = &stepRecord{PID: cmd.Process.Pid, Start: start, Host: ownHost(), In: a.Job}
	rec.Job, rec.Ran = a.Job, true
	ended := make(chan struct{})
	path := rec.path(recordExt)
	b.mu.Lock()
	b.children[path] = ended
	b.mu.Unlock()
	err = rec.write()
	if err != nil {
		_ = cmd.Process.Kill()
	}
	r := *rec
	go func() { // ends with the step or with this process
		err := cmd.Wait()
		b.ended(&r, r.stepVerdict(err))
		b.mu.Lock()
		delete(b.children, path)
		b.mu.Unlock()
		close(ended)
	}()
	return err
}

// stepEnvironment is ours without options that the user gave to other steps.
func stepEnvironment(own []string) (out []string) {
	for _, kv := range own {
		k, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(k, "SRUN_"), k == "SLURM_CPU_BIND", k == "SLURM_EXPORT_ENV", k == "SLURM_DISTRIBUTION", k == "SLURM_NTASKS_PER_NODE", k == "SLURM_KILL_BAD_EXIT":
			continue
		case strings.HasPrefix(k, "LAUNCHER_") && k != "LAUNCHER_HOME" && k != "LAUNCHER_CLUSTER":
			continue
		}
		out = append(out, kv)
	}
	return out
}

func (c *commands) count(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[name]++
}

// startOf is when a process began, in the kernel's ticks since boot; false = it is not there.
func startOf(pid int) (uint64, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	end := bytes.LastIndexByte(stat, ')')
	if err != nil || end < 0 {
		return 0, false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, false
	}
	n, err := strconv.ParseUint(f[19], 10, 64)
	return n, err == nil
}

func (r *record) stepAlive() bool {
	start, ok := startOf(r.Step.PID)
	return ok && start == r.Step.Start && r.Step.Host == ownHost()
}

// stepVerdict says how a step ended; what its srun said is not known when it was not our
// child.
func (r *record) stepVerdict(err error) backends.Status {
	name := "the step in Slurm job " + r.Step.In
	exit, _ := errors.AsType[*exec.ExitError](err)
	said := r.lastLine()
	if said != "" {
		said = "; its log ends: " + said
	}
	switch {
	case r.Stopped:
		return backends.Status{State: backends.Done, Why: "ended as asked"}
	case err == nil:
		return backends.Status{State: backends.Done, Why: name + " is over: its agents have left"}
	case exit != nil:
		return backends.Status{State: backends.Failed, Why: name + " failed (" + exit.String() + ")" + said}
	}
	return backends.Status{State: backends.Lost, Why: name + " is gone" + said}
}

// stepStatus tells by the step's srun. The queue, if it could be asked, tells when the
// allocation ends.
func (b *Backend) stepStatus(ctx context.Context, r *record, s *snapshot) backends.Status {
	b.mu.Lock()
	ended := b.children[r.path(recordExt)]
	b.mu.Unlock()
	if !r.stepAlive() {
		if ended != nil { // our own child: its exit status is about to be known
			select {
			case <-ended:
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		return b.ended(r, r.stepVerdict(errors.New("unknown")))
	}
	st := backends.Status{State: backends.Running}
	if s != nil {
		st.Deadline = s.byID[r.Step.In].end
	}
	return st
}

const (
	// Nodes that have been told to leave are about to; srun, told to end, kills its tasks
	// where they are, and is killed when it does not end.
	stepLeave = 5 * time.Second
	stepTerm  = 20 * time.Second
	stepKill  = 10 * time.Second
)

// endSteps ends those of the jobs that are steps.
func (b *Backend) endSteps(ctx context.Context, recs []record) error {
	began := time.Now()
	told := map[string]syscall.Signal{}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		var left *record
		for i := range recs {
			r := &recs[i]
			if r.Step == nil {
				continue
			}
			if !r.stepAlive() {
				b.stepStatus(ctx, r, nil)
				continue
			}
			left = r
			sig := syscall.SIGTERM
			if time.Since(began) > stepTerm {
				sig = syscall.SIGKILL
			}
			if told[r.Name] != sig && time.Since(began) > stepLeave {
				told[r.Name] = sig
				_ = syscall.Kill(r.Step.PID, sig)
			}
		}
		switch {
		case left == nil:
			return nil
		case time.Since(began) > stepTerm+stepKill:
			return errs.New(errs.Timeout, "srun, process %d, of %s cannot be ended", left.Step.PID, left.Name)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errs.Wrap(errs.Unknown, context.Cause(ctx), "ending %s", left.Name)
		}
	}
}
