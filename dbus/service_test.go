package dbus

import (
	"testing"

	"github.com/godbus/dbus/v5"
)

func changed(properties map[string]any) *dbus.Signal {
	variants := map[string]dbus.Variant{}
	for name, v := range properties {
		variants[name] = dbus.MakeVariant(v)
	}
	return &dbus.Signal{Name: "org.freedesktop.DBus.Properties.PropertiesChanged", Body: []any{"interface", variants, []string{}}}
}

func TestState(t *testing.T) {
	const exited, killed, dumped = int32(1), int32(2), int32(3)
	for _, c := range []struct {
		name    string
		signals []*dbus.Signal
		ended   bool
		exit    int
	}{
		{"inactive before the job runs", []*dbus.Signal{changed(map[string]any{"ActiveState": "inactive"})}, false, 0},
		{"ended by itself", []*dbus.Signal{changed(map[string]any{"ActiveState": "inactive"}), changed(map[string]any{"ActiveState": "activating", "MainPID": uint32(7)}),
			changed(map[string]any{"ActiveState": "active"}), changed(map[string]any{"MainPID": uint32(0), "ExecMainCode": exited, "ExecMainStatus": int32(42), "Result": "exit-code"}),
			changed(map[string]any{"ActiveState": "failed"})}, true, 42},
		{"killed", []*dbus.Signal{changed(map[string]any{"ActiveState": "active"}), changed(map[string]any{"ExecMainCode": killed, "ExecMainStatus": int32(9), "ActiveState": "failed"})},
			true, 137},
		{"dumped core", []*dbus.Signal{changed(map[string]any{"ActiveState": "active"}), changed(map[string]any{"ExecMainCode": dumped, "ExecMainStatus": int32(11), "ActiveState": "failed"})},
			true, 139},
		{"of another kind", []*dbus.Signal{{Name: "other", Body: []any{1}}, {Name: "org.freedesktop.DBus.Properties.PropertiesChanged"},
			changed(map[string]any{"ActiveState": 3, "ExecMainCode": "x"})}, false, 0},
	} {
		var st state
		for _, signal := range c.signals {
			st.apply(signal)
		}
		if ended := st.begun && st.stopped(); ended != c.ended || ended && st.exit() != c.exit {
			t.Errorf("%s: ended %v, %d", c.name, ended, st.exit())
		}
	}
}

// TestPayloadEnded tells a payload that ended before its start job from a manager's child that never became the payload.
func TestPayloadEnded(t *testing.T) {
	const exited, killed = int32(codeExited), int32(2)
	for _, c := range []struct {
		name         string
		handoff      uint64
		code, status int32
		ended, lost  bool
	}{
		{"nothing has ended", 5, 0, 0, false, false},
		{"exited", 5, exited, 3, true, false},
		{"exited before the manager knew of it", 0, exited, 3, true, false},
		{"succeeded", 5, exited, 0, true, false},
		{"exited with a status that systemd uses too", 5, exited, 217, true, false},
		{"killed", 5, killed, 9, true, false},
		{"no such user", 0, exited, 217, false, false},
		{"killed on the way", 0, killed, 9, false, false},
		{"not executable", 5, exited, StatusExec, false, false},
		{"the child that forked it", 0, exited, 0, false, true},
	} {
		var st state
		st.apply(changed(map[string]any{"ExecMainHandoffTimestampMonotonic": c.handoff, "ExecMainCode": c.code, "ExecMainStatus": c.status}))
		if ended, lost := st.payloadEnded(), st.lost(); ended != c.ended || lost != c.lost {
			t.Errorf("%s: ended %v, lost %v", c.name, ended, lost)
		}
	}
}

func TestJobResult(t *testing.T) {
	removed := func(body ...any) *dbus.Signal {
		return &dbus.Signal{Name: managerInterface + ".JobRemoved", Body: body}
	}
	for _, c := range []struct {
		signal *dbus.Signal
		result string
		ended  bool
	}{
		{removed(uint32(5), dbus.ObjectPath("/j"), "u.service", "done"), "done", true},
		{removed(uint32(6), dbus.ObjectPath("/j"), "u.service", "failed"), "failed", false},
		{removed(uint32(5)), "", false},
		{&dbus.Signal{Name: "other", Body: []any{uint32(5), "", "", "done"}}, "", false},
	} {
		if result, ended := jobResult(c.signal, 5); result != c.result || ended != c.ended {
			t.Errorf("%+v: %q, %v", c.signal, result, ended)
		}
	}
}

func TestVersionNumber(t *testing.T) {
	for in, want := range map[string]int{"257.13-1~deb13u1": 257, "262-1": 262, "258~rc1": 258, "v259 (259)": 259, "": 0, "x": 0} {
		if got, err := versionNumber(in); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}
