// A way from this host into a guest with a user NIC: a TCP port on the loopback that QEMU's user network (slirp)
// forwards to a port of the guest.
// Enters: a running QEMU, a netdev, a guest port. Leaves: the host port. It is made at run time, so that the command
// line is the same at both ends of a migration; QEMU keeps no forward in its migration stream, and drops it when it
// ends. Always holds: asking again gives the same port, also after a restart of the agent; the host port is one that
// the kernel has chosen.
import { GodwitError } from '../../wire/errors.ts'
import type { QmpCommands } from '../qmp/commands.ts'
import type { VmSpec } from './spec.ts'

const LOOPBACK = '127.0.0.1'
const COMMAND_MS = 5_000

/** The netdev (argv.ts) that services are reached by: the first user NIC. */
export function serviceNetdev(spec: VmSpec): string | undefined {
  const index = spec.nics.findIndex(nic => nic.type === 'user')
  return index < 0 ? undefined : `net${index}`
}

/** The host port that leads to `guestPort`. QEMU_COMMAND when there is no such netdev, or no port is free. */
export async function forwardedPort(commands: Pick<QmpCommands, 'humanMonitor'>, netdev: string, guestPort: number): Promise<number> {
  const find = async () => findForward(await commands.humanMonitor('info usernet', { timeoutMs: COMMAND_MS }), netdev, guestPort)
  const known = await find()
  if (known !== undefined) return known
  const said = await commands.humanMonitor(`hostfwd_add ${netdev} tcp:${LOOPBACK}:0-:${guestPort}`, { timeoutMs: COMMAND_MS })
  const made = await find()
  if (made === undefined)
    throw new GodwitError('QEMU_COMMAND', `QEMU did not forward port ${guestPort}: ${said.trim() || 'the forward is not in its list'}`)
  return made
}

/**
 * The forward in QEMU's `info usernet`, which is
 *
 *   Hub -1 (net0):
 *     Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
 *     TCP[HOST_FORWARD]  12       127.0.0.1 42079       10.0.2.15    80     0     0
 */
export function findForward(text: string, netdev: string, guestPort: number): number | undefined {
  let isOurs = false
  for (const line of text.split(/\r?\n/)) {
    const head = /\(([^()]+)\):\s*$/.exec(line)
    if (head) isOurs = head[1] === netdev
    const forward = /^\s*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)\s/.exec(line)
    if (isOurs && forward && Number(forward[2]) === guestPort) return Number(forward[1])
  }
  return undefined
}
