package sim

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

var (
	seed  = flag.Uint64("seed", 0, "play only the schedule of this seed, with a trace")
	calm  = flag.Bool("calm", false, "with -seed: nothing breaks")
	count = flag.Int("schedules", 300, "how many schedules to play")
)

// TestSchedules plays some hundred schedules in which everything breaks that may.
func TestSchedules(t *testing.T) {
	if *seed != 0 {
		res, err := Run(Options{Seed: *seed, Calm: *calm, Trace: os.Stdout})
		t.Logf("%+v", res)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	n := *count
	if testing.Short() || raceOn {
		n /= 10
	}
	faults := map[string]int{}
	failed, events := 0, 0
	var longest int64
	for s := uint64(1); s <= uint64(n); s++ {
		res, err := Run(Options{Seed: s})
		if err != nil {
			t.Errorf("seed %d: %v\nplay it again: go test ./internal/sim -run TestSchedules -seed %d", s, err, s)
			if failed++; failed == 5 {
				t.FailNow()
			}
		}
		for k, v := range res.Faults {
			faults[k] += v
		}
		events += res.Events
		longest = max(longest, res.Virtual)
	}
	t.Logf("%d schedules, %d events, the longest took %d virtual seconds, faults %v", n, events, longest/second, faults)
	if n >= 300 {
		for _, k := range []string{"head", "agent", "node", "net", "submit"} {
			if faults[k] < 10 {
				t.Errorf("only %d faults of kind %s", faults[k], k)
			}
		}
	}
}

// TestCalm plays schedules in which nothing breaks: then nothing may be run twice, and
// no time be lost.
func TestCalm(t *testing.T) {
	for s := uint64(1); s <= 20; s++ {
		if _, err := Run(Options{Seed: s, Calm: true}); err != nil {
			t.Errorf("seed %d: %v", s, err)
		}
	}
}

// TestGangAmongTasks: a gang that fits starts within bounded time, however many small
// tasks there are.
func TestGangAmongTasks(t *testing.T) {
	for s := uint64(1); s <= 20; s++ {
		if _, err := Run(Options{Seed: s, Calm: true, Flood: true}); err != nil {
			t.Errorf("seed %d: %v", s, err)
		}
	}
}

// TestSameSeedSameSchedule: a failure can be played again.
func TestSameSeedSameSchedule(t *testing.T) {
	a, errA := Run(Options{Seed: 7})
	b, errB := Run(Options{Seed: 7})
	if fmt.Sprint(a, errA) != fmt.Sprint(b, errB) {
		t.Errorf("two runs of one seed differ: %+v %v, %+v %v", a, errA, b, errB)
	}
}
