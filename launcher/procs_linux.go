package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// nodeProcesses finds every process that carries the mark of the cluster: its name and
// home in the environment, as up gave them to the head and the head to the rest, and as
// user processes get them. A shell in which the user has set the same variables is none:
// it runs neither our binary's hidden commands nor inside a task.
func nodeProcesses(t target) []process {
	home := []byte("LAUNCHER_HOME=" + filepath.Dir(filepath.Dir(t.dir)))
	name := []byte("LAUNCHER_CLUSTER=" + t.name)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []process
	for _, d := range dirs {
		env, err := os.ReadFile(d + "/environ")
		if err != nil || len(env) == 0 {
			continue
		}
		vars := bytes.Split(env, []byte{0})
		has := func(kv []byte) bool {
			return slices.ContainsFunc(vars, func(v []byte) bool { return bytes.Equal(v, kv) })
		}
		if !has(home) || !has(name) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		argv, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(argv), "\x00"), "\x00")
		p := process{pid: pid, cmd: strings.Join(args, " ")}
		switch {
		case len(args) > 1 && slices.Contains(ownKinds, args[1]):
			p.kind = args[1]
		case slices.ContainsFunc(vars, func(v []byte) bool { return bytes.HasPrefix(v, []byte("LAUNCHER_TASK_ID=")) }):
			p.kind = "task"
		default:
			continue
		}
		if !zombie(d) {
			out = append(out, p)
		}
	}
	return out
}

func zombie(dir string) bool {
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return true
	}
	i := bytes.LastIndexByte(b, ')')
	return i < 0 || i+2 >= len(b) || b[i+2] == 'Z' || b[i+2] == 'X'
}

// endProcesses ends a cluster whose head cannot: the guards of its nodes are told to end,
// which stops their work in order, then killed, which takes everything below with it, and
// at last what is left by itself. It gives what is still there.
func endProcesses(ctx context.Context, t target, grace time.Duration) []process {
	signal := func(sig syscall.Signal, kinds ...string) {
		for _, p := range nodeProcesses(t) {
			if len(kinds) == 0 || slices.Contains(kinds, p.kind) {
				_ = syscall.Kill(p.pid, sig)
			}
		}
	}
	// The head first, or it would start lost nodes again.
	signal(syscall.SIGKILL, "head-supervise")
	signal(syscall.SIGKILL, "head")
	signal(syscall.SIGTERM, "node", "slurm-node")
	if left := awaitGone(ctx, t, grace+2*time.Second); len(left) == 0 {
		return nil
	}
	signal(syscall.SIGKILL, "node", "slurm-node")
	if left := awaitGone(ctx, t, 2*time.Second); len(left) == 0 {
		return nil
	}
	signal(syscall.SIGKILL)
	return awaitGone(ctx, t, goneBound)
}
