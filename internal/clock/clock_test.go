package clock

import (
	"testing"
	"time"
)

func fired(t Timer) bool {
	select {
	case <-t.C():
		return true
	default:
		return false
	}
}

func TestFake(t *testing.T) {
	f := NewFake(100)
	tm := f.Timer()
	f.Advance(10)
	if fired(tm) {
		t.Fatal("fired without Reset")
	}
	tm.Reset(120)
	f.Advance(9)
	if fired(tm) {
		t.Fatal("fired early")
	}
	f.Advance(1)
	if !fired(tm) || fired(tm) {
		t.Fatal("want exactly one firing")
	}
	tm.Reset(50)
	if !fired(tm) {
		t.Fatal("a time that has passed does not fire at once")
	}
	tm.Reset(130)
	tm.Stop()
	f.Advance(time.Second)
	if fired(tm) {
		t.Fatal("fired after Stop")
	}
	if got := f.Now(); got != 120+int64(time.Second) {
		t.Fatalf("Now = %d", got)
	}
}

func TestReal(t *testing.T) {
	var c Clock = Real{}
	tm := c.Timer()
	tm.Reset(c.Now() + int64(time.Millisecond))
	select {
	case <-tm.C():
	case <-time.After(10 * time.Second):
		t.Fatal("did not fire")
	}
	tm.Reset(c.Now() + int64(time.Hour))
	tm.Stop()
}
