// The services of a gateway: a listener for each stable address. Enters: a list of VM, service and address. Leaves: listening sockets, figures.
// Always holds: what users do here costs migrations nothing but bytes: connections are bounded for each service, each on its own.
import { createServer, type Server, type Socket } from 'node:net'
import type { Metrics } from '../../ops/metrics.ts'
import type { ServiceView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Events } from '../control/events.ts'
import type { Sites } from '../control/sites.ts'
import { SERVICE_CONNECTIONS_MAX, Service } from './service.ts'

export type ServiceAddress = { vm: string; service: string; listen: { host: string; port: number } }

export type Services = {
  views(): ServiceView[]
  close(): Promise<void>
}

export type ServicesOptions = {
  list: ServiceAddress[]
  sites: Pick<Sites, 'vms' | 'openTo'>
  events: Events
  metrics: Metrics
  /** Tests only. */
  waitMs?: number | undefined
  log: Log
}

/** Listens at every address, or at none. CONFIG_INVALID when one is taken. */
export async function startServices({ list, sites, events, metrics, waitMs, log }: ServicesOptions): Promise<Services> {
  const count = createCounters(metrics)
  const changes = createChanges(events)
  const all: { service: Service; server: Server; address: { host: string; port: number } }[] = []
  const sockets = new Set<Socket>()
  const close = async () => {
    changes.close()
    for (const { service } of all) service.close(new GodwitError('CONNECTION_LOST', 'the gateway shuts down'))
    const closed = all.map(({ server }) => new Promise<void>(resolve => server.close(() => resolve())))
    for (const socket of sockets) socket.destroy()
    await Promise.all(closed)
  }
  metrics.sampled('service_connections', 'Connections to services that are open.', () =>
    sum(all.map(({ service }) => service.facts().open)),
  )
  metrics.sampled('service_waiting', 'Of these, those that wait for their VM.', () =>
    sum(all.map(({ service }) => service.facts().waiting)),
  )
  try {
    for (const { vm, service: name, listen } of list) {
      const service = new Service({
        ...{ vm, service: name, vms: sites.vms, changed: changes.next, waitMs, log },
        // Index 0: beside the heartbeats, not behind the pages of a migration.
        openTo: site => sites.openTo(site, 0),
        onEnded(outcome, waitedMs) {
          count.ended.inc({ outcome })
          if (waitedMs > 0) count.wait.observe(waitedMs / 1000)
        },
        onBytes: (direction, bytes) => count.bytes.inc({ direction: direction === 'source-to-target' ? 'to-vm' : 'to-user' }, bytes),
      })
      const server = createServer({ allowHalfOpen: true, noDelay: true }, socket => {
        sockets.add(socket)
        socket.once('close', () => sockets.delete(socket))
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

/** One promise for all who wait for something to be otherwise. */
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
    ended: metrics.counter('service_connections_total', 'Connections to services that have ended: served, cut, or the code of a refusal.', [
      'outcome',
    ]),
    bytes: metrics.counter('service_bytes_total', 'Bytes between users and VMs.', ['direction']),
    wait: metrics.histogram('service_reach_seconds', 'From a connection to its VM being reached.', [0.01, 0.03, 0.1, 0.3, 1, 3]),
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
