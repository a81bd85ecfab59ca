package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit/slurmtest"
)

// counted puts in front of Slurm's commands that a home finds ones that write down that
// they were called. The counts are read by the function it gives.
func counted(t *testing.T, env *[]string, names ...string) func() map[string]int {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	for _, name := range names {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("#!/bin/sh\necho %s >> %s\nexec %s \"$@\"\n", name, log, real)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	*env = append(*env, "PATH="+dir+":"+filepath.Dir(os.Getenv("LAUNCHER_TEST_BINARY"))+":"+os.Getenv("PATH"))
	return func() map[string]int {
		b, _ := os.ReadFile(log)
		n := map[string]int{}
		for _, w := range strings.Fields(string(b)) {
			n[w]++
		}
		return n
	}
}

// An array of 10,000 elements is one job, from `up` to `down` fewer than 20 questions to
// the controller by its own count, and each is one that we know of.
func TestSlurmCalls(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{CPUs: 64})
	commands := counted(t, &h.Env, "sbatch", "squeue", "scancel", "srun", "sinfo", "scontrol")
	h.Write("queue.toml", strings.Replace(slurmSpec("min = 2"), "cpu = 2,", "cpu = 64,", 1))
	before := c.Calls(t)
	most := 19
	// A machine that is slow waits longer, in which the queue is looked at again each time
	// that has doubled, and every half a minute while all runs. A look is two calls.
	timed := func(usual time.Duration, args ...string) {
		began := time.Now()
		h.OK(args...)
		for took := time.Since(began); took > usual; took /= 2 {
			most += 2
		}
	}
	timed(2*time.Second, "up", "queue.toml")
	timed(20*time.Second, "run", "--array", "0-9999", "--", "true")
	timed(2*time.Second, "down", "queue")
	asked := c.Calls(t)
	for k, n := range before {
		asked[k] -= n
	}
	maps.DeleteFunc(asked, func(k string, n int) bool { // what the nodes' daemons and sdiag ask
		return n <= 0 || strings.HasPrefix(k, "MESSAGE_") || strings.HasPrefix(k, "REQUEST_COMPLETE_") || k == "REQUEST_STEP_COMPLETE" || k == "REQUEST_STATS_INFO"
	})
	total, own := 0, commands()
	for _, n := range asked {
		total += n
	}
	t.Logf("%d calls: %v, by %v", total, asked, own)
	if total > most {
		t.Errorf("%d calls to the controller, wanted at most %d: %v", total, most, asked)
	}
	if own["sbatch"] != 1 || asked["REQUEST_SUBMIT_BATCH_JOB"] != 1 {
		t.Errorf("an array is %d jobs, by the controller %d", own["sbatch"], asked["REQUEST_SUBMIT_BATCH_JOB"])
	}
	for kind, command := range map[string]string{"REQUEST_JOB_USER_INFO": "squeue", "REQUEST_PARTITION_INFO": "squeue", "REQUEST_KILL_JOB": "scancel"} {
		// One that its caller gave up is counted by one side only.
		if n := own[command]; asked[kind] > n || asked[kind] < n-1 {
			t.Errorf("the controller counts %d of %s, we ran %s %d times", asked[kind], kind, command, n)
		}
	}
}
