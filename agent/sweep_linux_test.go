package agent

import (
	"os"
	"strings"
	"testing"
	"time"

	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// TestStrays: what a task leaves behind in a session of its own is killed soon after its
// end; what another task has there runs on.
func TestStrays(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	h.up("p-0", 1)
	dir := t.TempDir()
	lasting := `setsid sh -c 'echo $$ >` + dir + `/$LAUNCHER_JOB_ID; exec sleep 1000' >/dev/null 2>&1 & until [ -s ` + dir + `/$LAUNCHER_JOB_ID ]; do sleep 0.01; done`
	h.give("p-0", jobOf(1, wire.KindRun, "sh", "-c", lasting+"; echo up; exec sleep 1000"), 1)
	h.give("p-0", jobOf(2, wire.KindRun, "sh", "-c", lasting), 1)
	if e := h.endOf("p-0", procOf(2, 0)); e.Code != 0 {
		t.Fatalf("ended %+v", e)
	}
	alive := func(job string) bool {
		pid, err := os.ReadFile(dir + "/" + job)
		must(t, err)
		_, err = os.Stat("/proc/" + strings.TrimSpace(string(pid)))
		return err == nil
	}
	for late := time.Now().Add(bound); alive("2"); time.Sleep(10 * time.Millisecond) { // sleep: nothing tells of it
		if time.Now().After(late) {
			t.Fatal("the process of a task that is over lives on")
		}
	}
	h.wait("the first task", func() bool { return len(h.logs[logKey{"p-0", 1}]) > 0 })
	if !alive("1") {
		t.Error("the process of a task that runs was killed")
	}
	h.send("p-0", wire.MsgStop, wire.Stop{Job: 1, All: true, Grace: int64(time.Millisecond)})
	h.endOf("p-0", procOf(1, 0))
}
