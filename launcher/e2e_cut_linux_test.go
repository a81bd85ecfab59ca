package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// having are the hosts on which a process of the user has words in its command line.
func having(hosts []*testkit.Host, words string) (out []*testkit.Host) {
	for _, h := range hosts {
		if slices.ContainsFunc(h.Processes(), func(p string) bool { return strings.Contains(p, words) }) {
			out = append(out, h)
		}
	}
	return out
}

// weights are those that a training wrote to a file of a host.
func weights(t *testing.T, hosts []*testkit.Host, path string) string {
	t.Helper()
	var out string
	testkit.Eventually(t, testkit.Bound, func() string {
		for _, h := range hosts {
			if out = h.Read(path); out != "" {
				return ""
			}
		}
		return "no host has " + path
	})
	return out
}

// onceEach fails where a training did not print each of its steps, in order and once.
func onceEach(t *testing.T, what, out string) {
	t.Helper()
	from := 0
	for step := 1; step <= 8; step++ {
		line := fmt.Sprintf("[0] step %d: ", step)
		at := strings.Index(out, line)
		if at < from || strings.Count(out, line) != 1 {
			t.Errorf("%s: step %d is there %d times, or not in order: %s", what, step, strings.Count(out, line), out)
			return
		}
		from = at
	}
}

// three are three hosts and one more, and the weights of a training by three ranks that
// nothing disturbs.
func three(t *testing.T, n *testkit.Net, head string) (hosts []*testkit.Host, undisturbed string) {
	for i := range 4 {
		hosts = append(hosts, n.Host(fmt.Sprintf("h%d", i+1), testkit.HostOptions{}))
	}
	h := n.Laptop
	digits(t, h)
	h.Write("boxes.toml", netSpec(n, head, "box: h1 h2 h3 h4"))
	h.OK("up", "boxes.toml")
	h.OK("train", "-n", "3", "--per-node", "1", "train.py", "--out", "/tmp/w0.npy")
	return hosts, weights(t, hosts, "/tmp/w0.npy")
}

func linkIsCut(t *testing.T, d time.Duration) { time.Sleep(d) } // sleep: how long the link is cut is what is tested

// TestRootNetLaptop: with the head on a host, a training goes on whatever becomes of the
// laptop: its terminal closed, its command killed, its link cut for a minute.
func TestRootNetLaptop(t *testing.T) {
	n := netTest(t)
	hosts, undisturbed := three(t, n, "pool:box")
	h := n.Laptop
	term := h.StartTTY("train", "-n", "3", "--per-node", "1", "train.py", "--pause", "12", "--out", "/tmp/w1.npy")
	term.Expect("[0] step 1: ")
	term.Hangup()
	attached := h.Start("attach", "2")
	testkit.Eventually(t, testkit.Bound, func() string {
		if !strings.Contains(attached.Out(), "step 2") {
			return "attach shows no step 2: " + attached.Out() + attached.Err()
		}
		return ""
	})
	attached.Signal(syscall.SIGKILL)
	logs := h.Start("logs", "-f", "2")
	testkit.Eventually(t, testkit.Bound, func() string {
		if !strings.Contains(logs.Out(), "step 2") {
			return "logs -f shows nothing: " + logs.Out() + logs.Err()
		}
		return ""
	})
	n.Port.Down()
	linkIsCut(t, time.Minute)
	n.Port.Up()
	up := time.Now()
	testkit.Eventually(t, testkit.Bound, func() string {
		if !strings.Contains(logs.Out(), optimum) {
			return "logs -f does not go on: " + logs.Out() + logs.Err()
		}
		return ""
	})
	if r := logs.Wait(); r.Code != 0 {
		t.Errorf("logs -f: %s", r)
	}
	onceEach(t, "logs -f", logs.Out())
	t.Logf("logs -f had all %s after the link came back", time.Since(up).Round(time.Millisecond))
	if out := h.OK("logs", "2"); strings.Contains(out, "going on from step") {
		t.Errorf("the training was begun again: %s", out)
	}
	if weights(t, hosts, "/tmp/w1.npy") != undisturbed {
		t.Error("the weights are not those of an undisturbed training")
	}
	h.OK("down", "boxes")
	for _, x := range hosts {
		_ = os.Remove(filepath.Join(x.Seen("/tmp"), "w0.npy"))
		_ = os.Remove(filepath.Join(x.Seen("/tmp"), "w1.npy"))
	}
	onlyBinary(t, hosts...)
}

// TestRootNetCut: a host is cut from the head for 10 s, and for a minute.
func TestRootNetCut(t *testing.T) {
	n := netTest(t)
	hosts, undisturbed := three(t, n, "here")
	h := n.Laptop
	train := func(out, pause string) *testkit.Running {
		r := h.Start("train", "-n", "3", "--per-node", "1", "train.py", "--pause", pause, "--out", out)
		testkit.Eventually(t, testkit.Bound, func() string {
			if !strings.Contains(r.Out(), "step 2") {
				return "no step 2: " + r.Out() + r.Err()
			}
			return ""
		})
		return r
	}
	t.Run("for 10 s", func(t *testing.T) {
		r := train("/tmp/w1.npy", "2")
		x := having(hosts, "train.py")[1]
		x.Down()
		linkIsCut(t, 10*time.Second)
		x.Up()
		got := r.Wait()
		if got.Code != 0 || strings.Contains(got.Out, "going on from step") {
			t.Errorf("the training: %s", got)
		}
		onceEach(t, "train", got.Out)
		if weights(t, hosts, "/tmp/w1.npy") != undisturbed {
			t.Error("the weights are not those of an undisturbed training")
		}
	})
	t.Run("for a minute", func(t *testing.T) {
		r := train("/tmp/w2.npy", "4")
		x := having(hosts, "train.py")[1]
		rest := slices.DeleteFunc(slices.Clone(hosts), func(y *testkit.Host) bool { return y == x })
		x.Down()
		cut := time.Now()
		testkit.Eventually(t, time.Minute, func() string {
			if len(having(rest, "train.py")) < 3 || !strings.Contains(r.Out(), "going on from step") {
				return "the gang is not elsewhere: " + r.Out() + r.Err()
			}
			return ""
		})
		t.Logf("the gang went on elsewhere %s after the cut", time.Since(cut).Round(100*time.Millisecond))
		linkIsCut(t, time.Until(cut.Add(time.Minute)))
		x.Up()
		up := time.Now()
		testkit.Eventually(t, testkit.Bound, func() string {
			if len(having([]*testkit.Host{x}, "train.py")) > 0 {
				return "the fenced rank lives on " + x.Name
			}
			return ""
		})
		t.Logf("the fenced rank was gone %s after the link came back", time.Since(up).Round(100*time.Millisecond))
		if got := r.Wait(); got.Code != 0 || !strings.Contains(got.Out, optimum+"3\n") {
			t.Errorf("the training: %s", got)
		}
		if weights(t, rest, "/tmp/w2.npy") != undisturbed {
			t.Error("the weights are not those of an undisturbed training")
		}
		testkit.Eventually(t, testkit.Bound, func() string {
			if out := h.OK("status"); !strings.Contains(out, "4 nodes") && !strings.Contains(out, "4 up") {
				return "the host that was cut is no node again: " + out
			}
			return ""
		})
	})
	h.OK("down", "boxes")
	for _, x := range hosts {
		for i := range 3 {
			_ = os.Remove(filepath.Join(x.Seen("/tmp"), fmt.Sprintf("w%d.npy", i)))
		}
	}
	onlyBinary(t, hosts...)
}

// TestRootNetPower: what ran on a host that lost its power, or its link, is elsewhere
// within 20 s, and its ghost has no say when the link is back.
func TestRootNetPower(t *testing.T) {
	n := netTest(t)
	var hosts []*testkit.Host
	for i := range 4 {
		hosts = append(hosts, n.Host(fmt.Sprintf("h%d", i+1), testkit.HostOptions{}))
	}
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2 h3 h4"))
	h.OK("up", "boxes.toml")
	const until = "until [ -e /tmp/go ]; do sleep 0.1; done"
	job := func() *testkit.Running {
		r := h.Start("run", "--cpus", "2", "--", "sh", "-c", "echo begun on $(hostname); "+until+"; echo ended on $(hostname)")
		testkit.Eventually(t, testkit.Bound, func() string {
			if len(having(hosts, until)) != 1 {
				return "it does not run: " + r.Err()
			}
			return ""
		})
		return r
	}
	elsewhere := func(since time.Time, r *testkit.Running, not *testkit.Host) *testkit.Host {
		t.Helper()
		var at *testkit.Host
		testkit.Eventually(t, testkit.Bound, func() string {
			all := slices.DeleteFunc(having(hosts, until), func(x *testkit.Host) bool { return x == not })
			if len(all) != 1 {
				return "it runs nowhere else: " + r.Out() + r.Err()
			}
			at = all[0]
			return ""
		})
		took := time.Since(since)
		if took > 20*time.Second {
			t.Errorf("it was elsewhere after %s", took)
		}
		t.Logf("from %s to %s in %s", not.Name, at.Name, took.Round(100*time.Millisecond))
		return at
	}
	// The link alone: the ghost ends its task as if nothing were, and that is not the job's end.
	r := job()
	x := having(hosts, until)[0]
	x.Down()
	at := elsewhere(time.Now(), r, x)
	x.Write("/tmp/go", "")
	testkit.Eventually(t, testkit.Bound, func() string {
		if len(having([]*testkit.Host{x}, until)) > 0 {
			return "the ghost's task runs"
		}
		return ""
	})
	x.Up()
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("nodes"); strings.Count(out, " up ") != 4 {
			return "the host that was cut is no node again: " + out
		}
		return ""
	})
	if len(having(hosts, until)) != 1 {
		t.Errorf("with the ghost back it runs on %d hosts", len(having(hosts, until)))
	}
	at.Write("/tmp/go", "")
	if got := r.Wait(); got.Code != 0 || !strings.HasSuffix(got.Out, "ended on "+at.Name+"\n") {
		t.Errorf("the job: %s", got)
	}
	for _, y := range []*testkit.Host{x, at} {
		_ = os.Remove(filepath.Join(y.Seen("/tmp"), "go"))
	}
	// A ghost whose task runs on is ended.
	r = job()
	x = having(hosts, until)[0]
	x.Down()
	at = elsewhere(time.Now(), r, x)
	x.Up()
	up := time.Now()
	testkit.Eventually(t, testkit.Bound, func() string {
		if len(having([]*testkit.Host{x}, until)) > 0 {
			return "the ghost lives on " + x.Name
		}
		return ""
	})
	t.Logf("the ghost was gone %s after the link came back", time.Since(up).Round(100*time.Millisecond))
	at.PowerOff()
	hosts = slices.DeleteFunc(hosts, func(y *testkit.Host) bool { return y == at })
	at = elsewhere(time.Now(), r, at)
	at.Write("/tmp/go", "")
	if got := r.Wait(); got.Code != 0 || !strings.HasSuffix(got.Out, "ended on "+at.Name+"\n") {
		t.Errorf("the job: %s", got)
	}
	_ = os.Remove(filepath.Join(at.Seen("/tmp"), "go"))
	down := time.Now()
	h.Fails(124, []string{"nothing confirmed the end of"}, "down", "boxes")
	t.Logf("down took %s with a host that has no power", time.Since(down).Round(100*time.Millisecond))
	onlyBinary(t, hosts...)
}
