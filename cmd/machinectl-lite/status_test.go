package main

import (
	"net/netip"
	"testing"
	"time"

	"nspawnd/dbus"
	"nspawnd/machined"
)

func TestStatusFormat(t *testing.T) {
	since := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	now := since.Add(2*time.Hour + 3*time.Minute)
	unit := "/machine.slice/nspawnd-web.service"
	web := status{
		Properties: machined.Properties{
			Name: "web", ID: [16]byte{0xab, 15: 1}, Since: since, Service: "nspawnd", Class: "container", Unit: "nspawnd-web.service", Leader: 1234,
			RootDirectory: "/run/nspawnd/web/root",
		},
		leader: "nginx", image: "registry.test:5000/demo/nginx:latest", os: "Debian GNU/Linux 13 (trixie)", interfaces: []string{"ve-web", "7"},
		addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::1")}, uidShift: 65536,
		group: unit,
		processes: []dbus.Process{
			{ControlGroup: unit, PID: 1234, Command: "nginx: master process nginx -g \"daemon off;\" -c /etc/nginx/a-long-path/nginx.conf"},
			{ControlGroup: unit + "/b", PID: 7, Command: "seven"}, {ControlGroup: unit + "/b", PID: 10, Command: "ten"}, {ControlGroup: unit + "/a/deep", PID: 99, Command: "\x1b[2Jwiped"},
			{ControlGroup: "/elsewhere", PID: 5, Command: "five"}, {ControlGroup: unit + "x", PID: 6, Command: "six"},
		},
	}
	utf8 := terminal{utf8: true, columns: 60}
	for name, test := range map[string]struct {
		status status
		out    output
	}{
		"status":        {web, output{terminal: utf8}},
		"status-wide":   {web, output{terminal: utf8, wide: true}},
		"status-ascii":  {web, output{terminal: terminal{columns: 80}}},
		"status-colour": {web, output{terminal: terminal{utf8: true, color: true, columns: 80}}},
		"status-unregistered": {status{Properties: machined.Properties{
			Name: "db", Since: since, Service: "nspawnd", Class: "container", Unit: "nspawnd-db.service", Leader: 7}}, output{terminal: utf8}},
		"status-bare": {status{Properties: machined.Properties{Name: "x", Class: "vm"}}, output{terminal: utf8}},
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, test.status.format(&test.out, now)) })
	}
}

func TestAge(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		0:                                 "now",
		1500 * time.Nanosecond:            "1us ago",
		12 * time.Millisecond:             "12ms ago",
		59*time.Second + time.Millisecond: "59s ago",
		61 * time.Second:                  "1min 1s ago",
		5 * time.Minute:                   "5min ago",
		3*time.Hour + 59*time.Minute:      "3h 59min ago",
		6*time.Hour + 59*time.Minute:      "6h ago",
		24*time.Hour + 59*time.Minute:     "24h ago",
		26 * time.Hour:                    "1 day 2h ago",
		3*day + time.Hour:                 "3 days ago",
		8 * day:                           "1 week 1 day ago",
		62 * day:                          "2 months 1 day ago",
		800 * day:                         "2 years 2 months ago",
		-90 * time.Second:                 "1min 30s left",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestUnitImage(t *testing.T) {
	for description, want := range map[string]string{
		"web: registry.test:5000/demo/nginx:latest": "registry.test:5000/demo/nginx:latest",
		"nspawnd-web.service":                       "",
		"db: x":                                     "",
	} {
		if got := unitImage(description, "web"); got != want {
			t.Errorf("%s: got %q, want %q", description, got, want)
		}
	}
}
