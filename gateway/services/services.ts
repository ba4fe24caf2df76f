// The services of a gateway: a listener for each stable address. Enters: a list of VM, service and address. Leaves:
// listening sockets, figures. Always holds: users affect migrations only by their bytes: the connections of each
// service are bounded separately.
import { createServer, type Server, type Socket } from 'node:net'
import type { Metrics } from '../../ops/metrics.ts'
import { createAdmission } from '../../transport/admission.ts'
import type { ServiceView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Events } from '../handoff/events.ts'
import type { Homes } from '../handoff/homes.ts'
import type { Sites } from '../sites/sites.ts'
import { SERVICE_CONNECTIONS_MAX, SERVICE_CONNECTIONS_PER_ADDRESS, Service } from './service.ts'

export type ServiceAddress = { vm: string; service: string; listen: { host: string; port: number } }

export type UserServices = {
  views(): ServiceView[]
  close(): Promise<void>
}

type ServicesOptions = {
  list: ServiceAddress[]
  sites: Pick<Sites, 'openTo'>
  homes: Pick<Homes, 'find'>
  events: Events
  metrics: Metrics
  /** Tests only. */
  waitMs?: number | undefined
  log: Log
}

/** Listens at every address, or at none. CONFIG_INVALID if one is in use. */
export async function startServices({ list, sites, homes, events, metrics, waitMs, log }: ServicesOptions): Promise<UserServices> {
  const count = createCounters(metrics)
  const changes = createChanges(events)
  const all: { service: Service; server: Server; address: { host: string; port: number } }[] = []
  const sockets = new Set<Socket>()
  const close = async () => {
    changes.close()
    for (const { service } of all) service.close(new GodwitError('CONNECTION_LOST', 'the gateway is shutting down'))
    const closed = all.map(({ server }) => new Promise<void>(resolve => server.close(() => resolve())))
    for (const socket of sockets) socket.destroy()
    await Promise.all(closed)
  }
  metrics.sampled('service_connections', 'Open connections to services.', () => sum(all.map(({ service }) => service.facts().open)))
  metrics.sampled('service_waiting', 'Open connections to services that wait for their VM.', () =>
    sum(all.map(({ service }) => service.facts().waiting)),
  )
  try {
    for (const { vm, service: name, listen } of list) {
      const service = new Service({
        ...{ vm, service: name, home: () => homes.find(vm), changed: changes.next, waitMs, log },
        // On the control connection, so that pages of a migration do not delay it.
        openTo: site => sites.openTo(site, { isUrgent: true, index: 0 }),
        onEnded(outcome, waitedMs) {
          count.ended.inc({ outcome })
          if (waitedMs > 0) count.wait.observe(waitedMs / 1000)
        },
        onBytes: (direction, bytes) => count.bytes.inc({ direction: direction === 'source-to-target' ? 'to-vm' : 'to-user' }, bytes),
      })
      const places = createAdmission({ total: SERVICE_CONNECTIONS_MAX, perAddress: SERVICE_CONNECTIONS_PER_ADDRESS })
      const server = createServer({ allowHalfOpen: true, noDelay: true }, socket => {
        const leave = places.enter(socket.remoteAddress ?? '')
        if (!leave) {
          count.ended.inc({ outcome: 'LIMIT_EXCEEDED' })
          return void socket.resetAndDestroy()
        }
        sockets.add(socket)
        socket.once('close', () => {
          sockets.delete(socket)
          leave()
        })
        void service.serve(socket)
      })
      server.maxConnections = SERVICE_CONNECTIONS_MAX
      all.push({ service, server, address: await listening(server, listen) })
      log.info('service ready', { vm, service: name, ...all.at(-1)!.address })
    }
  } catch (error) {
    await close()
    throw error
  }
  return { views: () => all.map(({ service, address }) => ({ ...service.facts(), listen: address })), close }
}

const sum = (numbers: number[]): number => numbers.reduce((a, b) => a + b, 0)

/** One promise for all waiters for the next change. */
function createChanges(events: Events): { next(): Promise<void>; close(): void } {
  let next = Promise.withResolvers<void>()
  const off = events.subscribe(({ event }) => {
    if (event !== 'site' && event !== 'migration') return
    next.resolve()
    next = Promise.withResolvers<void>()
  })
  return {
    next: () => next.promise,
    close() {
      off()
      next.resolve()
    },
  }
}

function createCounters(metrics: Metrics) {
  return {
    ended: metrics.counter('service_connections_total', 'Ended connections to services, by outcome: served, cut, or an error code.', [
      'outcome',
    ]),
    bytes: metrics.counter('service_bytes_total', 'Bytes between users and VMs.', ['direction']),
    wait: metrics.histogram('service_reach_seconds', 'Time from accepting a connection to reaching its VM.', [0.01, 0.03, 0.1, 0.3, 1, 3]),
  }
}

function listening(server: Server, { host, port }: { host: string; port: number }): Promise<{ host: string; port: number }> {
  return new Promise((resolve, reject) => {
    server.once('error', cause =>
      reject(new GodwitError('CONFIG_INVALID', `services: cannot listen on ${host}:${port}: ${cause.message}`, { cause })),
    )
    server.listen(port, host, () => {
      const bound = server.address()
      resolve({ host, port: typeof bound === 'object' && bound ? bound.port : port })
    })
  })
}
