package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// TestRootNetHeadTraining: the head's host, on which one of a training's ranks runs, loses
// its power. The training begins again elsewhere, whatever of its checkpoints is left, and
// comes to the same weights.
func TestRootNetHeadTraining(t *testing.T) {
	n := netTest(t)
	hosts, undisturbed := three(t, n, "pool:box")
	h := n.Laptop
	at := headHost(t, hosts, testkit.Bound)
	testkit.Eventually(t, testkit.Bound, func() string {
		out := h.OK("status")
		for l := range strings.Lines(out) {
			if strings.HasPrefix(l, "journal ") && strings.Count(l, ",") == 1 {
				return ""
			}
		}
		return "the journal is not copied: " + out
	})
	r := h.Start("train", "-n", "3", "--per-node", "1", "train.py", "--pause", "2", "--out", "/tmp/w1.npy")
	testkit.Eventually(t, testkit.Bound, func() string {
		if !strings.Contains(r.Out(), "step 3") {
			return "no step 3: " + r.Out() + r.Err()
		}
		return ""
	})
	if !slices.Contains(having(hosts, "train.py"), at) {
		t.Fatalf("no rank is on %s, where the head is", at.Name)
	}
	at.PowerOff()
	off := time.Now()
	hosts = slices.DeleteFunc(hosts, func(x *testkit.Host) bool { return x == at })
	headHost(t, hosts, time.Minute)
	if got := r.Wait(); got.Code != 0 {
		t.Fatalf("the training: %s", got)
	}
	t.Logf("it had ended %s after the power went", time.Since(off).Round(100*time.Millisecond))
	if weights(t, hosts, "/tmp/w1.npy") != undisturbed {
		t.Error("the weights are not those of an undisturbed training")
	}
	h.Fails(124, []string{"nothing confirmed the end of", at.Name}, "down", "boxes")
	for _, x := range hosts {
		for i := range 2 {
			_ = os.Remove(filepath.Join(x.Seen("/tmp"), fmt.Sprintf("w%d.npy", i)))
		}
	}
	onlyBinary(t, hosts...)
}
