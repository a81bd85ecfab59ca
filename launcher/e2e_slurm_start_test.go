package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// startedAt is when the controller started a job, by its log.
func startedAt(t *testing.T, c *slurmtest.Cluster, job string) time.Time {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.Dir, "slurmctld.log"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\[(\S+)\] .*(?:Started|Allocate) JobId=` + job + `\b`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no start of job %s in the controller's log", job)
	}
	at, err := time.ParseInLocation("2006-01-02T15:04:05.000", string(m[1]), time.Local)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// From a job's start to the first task on its nodes takes about as long as to the first
// line of a bare srun: 0.5 s more at most.
func TestSlurmStart(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{})
	h.Write("queue.toml", slurmSpec("max = 1"))
	h.Write("bare.sh", "#!/bin/bash\n#SBATCH -N 1 -n 1 -c 2 -o bare.out\nexec srun date +%s%N\n")
	job := 0
	took := func(out string) time.Duration {
		t.Helper()
		job++
		ns, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil {
			t.Fatalf("job %d: %q", job, out)
		}
		return time.Unix(0, ns).Sub(startedAt(t, c, fmt.Sprint(job)))
	}
	var bare, ours []time.Duration
	for range 5 {
		if r := testkit.Finish(h.Program(t.Context(), "sbatch", "--wait", "bare.sh")); r.Code != 0 {
			t.Fatalf("sbatch: %s", r)
		}
		bare = append(bare, took(h.Read("bare.out")))
		h.OK("up", "queue.toml")
		ours = append(ours, took(h.OK("run", "--", "date", "+%s%N")))
		h.OK("down", "queue")
	}
	slices.Sort(bare)
	slices.Sort(ours)
	var inside []string // of a line in a batch script: before, the first line of it, by turns
	for line := range strings.Lines(batch(t, h, c, "-N 1 -n 1 -c 2", `
for i in 1 2 3; do
	echo $(date +%s%N) $(srun date +%s%N) $(date +%s%N) $(launcher run -- date +%s%N)
done
`)) {
		var a, b, x, y int64
		if _, err := fmt.Sscan(line, &a, &b, &x, &y); err != nil {
			t.Fatalf("in a batch script: %q: %v", line, err)
		}
		inside = append(inside, fmt.Sprintf("%v and %v", time.Duration(b-a).Round(time.Millisecond), time.Duration(y-x).Round(time.Millisecond)))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	t.Logf("from the job's start: srun %v, the first task %v, medians %v and %v; lines in a batch script, srun and launcher run: %s; load %s", bare, ours, bare[2], ours[2], inside, load)
	// What else the machine does makes some of them late, and none early.
	if more := ours[0] - bare[0]; more > 500*time.Millisecond {
		t.Errorf("the first task came at best %v after the first line of a bare srun", more)
	}
}
