// What users reach in the VMs of this site: streams of the gateway, each one TCP connection to a service of a guest.
// Enters: service streams, standing behind their SERVICE frame. Leaves: the same bytes to and from the guest, or an
// ERROR frame with a code.
// Always holds: only a VM whose guest runs here is answered for (VM_UNKNOWN, VM_STATE), so a gateway with an old map is
// told, never misled; not a byte of the user reaches a guest before that is certain; one chunk in each direction is
// held, so a slow side slows the other.
import type { Socket } from 'node:net'
import { within } from '../ops/deadline.ts'
import type { FrameStream } from '../transport/frames.ts'
import { createSocketStream } from '../transport/socket-stream.ts'
import type { Stream } from '../transport/types.ts'
import type { ServiceRequest } from '../wire/control.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { toJson } from '../wire/schema.ts'
import { FRAME } from '../wire/types.ts'
import { publicError } from './link/privacy.ts'
import type { Registry } from './registry/registry.ts'
import { forwardedPort, serviceNetdev } from './vm/forward.ts'
import { GuestDoor } from './vm/guest-door.ts'
import type { RunningVm } from './vm/machine.ts'

const SERVICE_STREAMS_MAX = 1024
const ANSWER_MS = 5_000

export type GuestServices = {
  /** Serves one stream to its end. Never throws. */
  onServiceStream(request: ServiceRequest, frames: FrameStream): Promise<void>
}

export function createServices({ registry, log }: { registry: Registry; log: Log }): GuestServices {
  const doors = new WeakMap<RunningVm, Map<number, Promise<GuestDoor>>>()
  let open = 0

  function doorOf(vm: RunningVm, netdev: string, guestPort: number): Promise<GuestDoor> {
    const known = doors.get(vm) ?? new Map<number, Promise<GuestDoor>>()
    doors.set(vm, known)
    let door = known.get(guestPort)
    if (!door) {
      door = forwardedPort(vm.commands, netdev, guestPort).then(
        port => new GuestDoor({ port, epoch: registry.get(vm.name).epoch, uid: vm.user() }),
      )
      door.catch(() => known.delete(guestPort))
      known.set(guestPort, door)
    }
    return door
  }

  /** Forwards are made when a VM begins to run here, not when its first user comes. */
  function warm(): void {
    for (const { name } of registry.list()) {
      if (!registry.runs(name)) continue
      const { spec, vm, netdev } = wayTo(registry, name)
      for (const { port } of netdev === undefined ? [] : spec.services)
        doorOf(vm, netdev!, port).catch(error => log.warn('service not reachable', { vm: name, error }))
    }
  }
  registry.onChange(warm)
  warm()

  async function reach({ vm: name, service }: ServiceRequest): Promise<Socket> {
    const { spec, vm, netdev } = wayTo(registry, name)
    const found = spec.services.find(one => one.name === service)
    if (!found || netdev === undefined) throw new GodwitError('SERVICE_UNKNOWN', `VM ${name} has no service '${service}'`)
    const door = await doorOf(vm, netdev, found.port)
    const socket = await door.connect()
    // It may have been stopped for its hand-over meanwhile: what is sent now would be lost with this QEMU.
    if (registry.runs(name)) return socket
    socket.destroy()
    throw stopped(name)
  }

  return {
    async onServiceStream(request, frames) {
      try {
        if (open >= SERVICE_STREAMS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${SERVICE_STREAMS_MAX} open service streams`)
        open += 1
        try {
          await serve(await reach(request), request, frames)
        } finally {
          open -= 1
        }
      } catch (thrown) {
        const error = toGodwitError(thrown)
        log.debug('service stream rejected', { ...request, error })
        await refuse(frames, error)
      }
    },
  }
}

function wayTo(registry: Registry, name: string) {
  const spec = registry.spec(name)
  if (!registry.runs(name)) throw stopped(name)
  return { spec, vm: registry.machine(name), netdev: serviceNetdev(spec) }
}

const stopped = (name: string) => new GodwitError('VM_STATE', `${name} does not run at this site`)

/** Says yes, then passes bytes both ways. What breaks after the yes ends both sides: it is no refusal. */
async function serve(socket: Socket, request: ServiceRequest, frames: FrameStream): Promise<void> {
  const guest = createSocketStream(socket)
  try {
    await within(frames.write(FRAME.SERVICE, toJson(request)), { ms: ANSWER_MS, what: 'the answer to a service stream' })
    const user = frames.rest()
    await Promise.all([pump(user, guest), pump(guest, user)])
  } catch {
    frames.stream.reset('the service stream failed')
    guest.reset()
  }
}

async function pump(from: Stream, to: Stream): Promise<void> {
  for (let chunk = await from.read(); chunk !== null; chunk = await from.read()) await to.write(chunk)
  await to.end()
}

async function refuse(frames: FrameStream, error: GodwitError): Promise<void> {
  try {
    const told = frames.write(FRAME.ERROR, toJson(publicError(error))).then(() => frames.stream.end())
    await within(told, { ms: ANSWER_MS, what: 'a refusal' })
  } catch {
    frames.stream.reset(error.code)
  }
}
