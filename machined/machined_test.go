package machined

import (
	"errors"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

func TestParseProperties(t *testing.T) {
	id := [16]byte{0xde, 0xad, 15: 0xef}
	values := map[string]dbus.Variant{
		"Name":              dbus.MakeVariant("web"),
		"Id":                dbus.MakeVariant(id[:]),
		"Timestamp":         dbus.MakeVariant(uint64(1_700_000_000_123_456)),
		"Leader":            dbus.MakeVariant(uint32(42)),
		"NetworkInterfaces": dbus.MakeVariant([]int32{2, 3}),
		"Subgroup":          dbus.MakeVariant("/payload"),
		"OfAFutureVersion":  dbus.MakeVariant(true),
	}
	got, err := parseProperties(values)
	if err != nil {
		t.Fatal(err)
	}
	want := Properties{
		Name: "web", ID: id, Since: time.UnixMicro(1_700_000_000_123_456), Leader: 42, NetworkInterfaces: []int32{2, 3}, Subgroup: "/payload",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParsePropertiesRefusesOtherTypes(t *testing.T) {
	if _, err := parseProperties(map[string]dbus.Variant{"Leader": dbus.MakeVariant("42")}); err == nil {
		t.Error("a leader that is a string was taken")
	}
}

func TestErrorReadsAsMachinedSaidIt(t *testing.T) {
	err := reason(dbus.Error{Name: "org.freedesktop.machine1.NoSuchMachine", Body: []any{"No machine 'x' known"}})
	if !errors.Is(err, ErrNoSuchMachine) || errors.Is(err, ErrMachineExists) {
		t.Errorf("%v is not ErrNoSuchMachine alone", err)
	}
	if got, want := err.Error(), "No machine 'x' known"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
