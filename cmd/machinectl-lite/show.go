package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nspawnd/dbus"
	"nspawnd/machined"
)

func showCommand() *cobra.Command {
	var flags propertyFlags
	cmd := &cobra.Command{
		Use:   "show [NAME...]",
		Short: "Show properties of machines",
		Long: `Show the properties that systemd-machined has of machines, or without a NAME its own, as lines NAME=VALUE for programs. Properties without a value are
shown with --all. Of a machine of nspawnd that machined does not know, what its unit says is shown.`,
		Example: `  machinectl-lite show web
  machinectl-lite show -P Leader web`,
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, names []string) error {
			flags.join()
			if len(names) == 0 {
				return flags.showManager(cmd.Context())
			}
			shown := blocks{out: os.Stdout}
			return forEachMachine(cmd.Context(), names, func(host *host, name string) error {
				values, err := host.machined.GetAll(cmd.Context(), name)
				if unknown(err) {
					var unit dbus.Unit
					unit, err = host.unregistered(cmd.Context(), name, err)
					values = map[string]any{
						"Name": name, "Timestamp": uint64(unit.Started.UnixMicro()), "Service": machined.OwnService, "Unit": unit.Name, "Leader": unit.MainPID, "Class": machined.OwnClass, "State": "running",
					}
				}
				if err != nil {
					return fmt.Errorf("could not get path to machine: %w", err)
				}
				return shown.write(flags.format(machineProperties(values)))
			})
		},
	}
	flags.register(cmd)
	return cmd
}

// showManager shows machined's own properties.
func (f *propertyFlags) showManager(ctx context.Context) error {
	values, err := managerProperties(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Print(f.format(machineProperties(values)))
	return err
}

// managerProperties asks machined for its own properties.
func managerProperties(ctx context.Context) (map[string]any, error) {
	host, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer host.close()
	values, err := host.machined.ManagerProperties(ctx)
	if err != nil {
		return nil, fmt.Errorf("could not get properties: %w", err)
	}
	return values, nil
}

// propertyOrder is machinectl's; what a later machined has comes after it.
var propertyOrder = strings.Fields("PoolPath PoolUsage PoolLimit Name Id Timestamp TimestampMonotonic Service Unit Subgroup Leader LeaderPIDFDId Supervisor SupervisorPIDFDId " +
	"Class RootDirectory NetworkInterfaces VSockCID SSHAddress SSHPrivateKeyPath State UID")

// machineProperties puts what machined says into machinectl's order and words.
func machineProperties(values map[string]any) []property {
	names := slices.DeleteFunc(slices.Clone(propertyOrder), func(name string) bool { _, there := values[name]; return !there })
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	properties := make([]property, len(names))
	for i, name := range names {
		properties[i] = property{name, propertyWords(name, values[name])}
	}
	return properties
}

func propertyWords(name string, value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []byte:
		return hex.EncodeToString(v)
	case []int32:
		var words []string
		for _, n := range v {
			words = append(words, strconv.Itoa(int(n)))
		}
		return strings.Join(words, " ")
	case bool:
		return yesNo(v)
	case uint64:
		if name == "Timestamp" {
			return timestamp(time.UnixMicro(int64(v)))
		}
	}
	return fmt.Sprint(value)
}
