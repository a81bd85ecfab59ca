package broker

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"launcher/wire"
)

// A head that was lost on its way home, when it had taken back the file that says where it
// is, is taken home all the same.
func TestLostOnTheWayHome(t *testing.T) {
	f := &awayFront{front: front{dir: t.TempDir(), log: slog.New(slog.DiscardHandler), poke: make(chan struct{}, 1), heard: time.Now().Add(-awayLost)}, seat: wire.HeadSeat{Node: "burst-0"}}
	err := f.follow(context.Background())
	home, ok := errors.AsType[*Home](err)
	if !ok || len(home.Doubted) != 1 || home.Doubted[0] != "burst-0" {
		t.Fatalf("the front ends with %v, wanted the head home from burst-0", err)
	}
}
