// The known sites: who is connected, over which connections, and the last report of each. Enters: authenticated
// connections, site.state messages. Leaves: the link to a site, a stream to a site, views for status. Always holds: a
// site has at most one control link; a later incarnation (process) of its node replaces an earlier one, never the
// reverse; data connections belong to the incarnation of the control link and end with it. Messages of a replaced link
// change nothing.
import type { Clock } from '../../ops/clock.ts'
import { carrierOf } from '../../transport/bulk.ts'
import type { RpcPeer } from '../../transport/rpc.ts'
import type { Connection, Stream } from '../../transport/types.ts'
import type { SiteView, VmView } from '../../wire/admin.ts'
import { DATA_CONNECTIONS_MAX, type SiteState } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Placing } from '../../wire/roles.ts'
import type { StoredSite } from '../store/records.ts'
import type { ConnectedNode } from './authenticate.ts'

const SITES_MAX = 4096

export type NodeLink = {
  readonly site: string
  readonly peer: ConnectedNode
  readonly connection: Connection
  readonly rpc: RpcPeer
  readonly since: number
}

type Site = { control: NodeLink | undefined; data: Set<NodeLink>; state: SiteState | undefined; last: StoredSite | undefined }

export type Sites = {
  /**
   * Registers an authenticated connection until it closes. SITE_DUPLICATE, SITE_OFFLINE (data before control),
   * LIMIT_EXCEEDED.
   */
  attach(link: NodeLink): void
  detach(link: NodeLink): void
  /** Accepts a report of a site; false if this link was replaced. */
  update(link: NodeLink, state: SiteState): boolean
  /** The control link of a connected site that has sent its state. */
  online(site: string): NodeLink | undefined
  known(site: string): boolean
  /** Removes a site. SITE_UNKNOWN, SITE_ONLINE. */
  forget(site: string): void
  /** The state received over the current control link. */
  state(site: string): SiteState | undefined
  /** The stored part of a site. */
  memory(site: string): StoredSite | undefined
  openTo(site: string, placing: Placing): Promise<Stream>
  vms(): VmView[]
  views(): SiteView[]
  view(site: string): SiteView | undefined
  links(): NodeLink[]
}

export function createSites(remembered: StoredSite[], clock: Clock, onChange: (site: string) => void = () => {}): Sites {
  const sites = new Map<string, Site>()
  for (const last of remembered) sites.set(last.site, { control: undefined, data: new Set(), state: undefined, last })

  function attachControl(site: Site, link: NodeLink): void {
    const old = site.control
    if (old && old.peer.hello.incarnation > link.peer.hello.incarnation)
      throw new GodwitError('SITE_DUPLICATE', `a node of site ${link.site} that started later is connected`)
    site.control = link
    site.state = undefined
    if (!old) return
    drop(old, 'a newer link of this site replaced it')
    if (old.peer.hello.incarnation === link.peer.hello.incarnation) return
    for (const data of site.data) drop(data, 'the node was restarted')
    site.data.clear()
  }

  function attachData(site: Site, link: NodeLink): void {
    if (site.control?.peer.hello.incarnation !== link.peer.hello.incarnation)
      throw new GodwitError('SITE_OFFLINE', `site ${link.site} has no control link of this incarnation`)
    if (site.data.size >= DATA_CONNECTIONS_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `site ${link.site} already has ${DATA_CONNECTIONS_MAX} data connections`)
    site.data.add(link)
  }

  return {
    attach(link) {
      const site = sites.get(link.site) ?? { control: undefined, data: new Set(), state: undefined, last: undefined }
      if (!sites.has(link.site) && sites.size >= SITES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${SITES_MAX} sites`)
      if (link.peer.hello.purpose === 'control') attachControl(site, link)
      else attachData(site, link)
      sites.set(link.site, site)
    },
    detach(link) {
      const site = sites.get(link.site)
      site?.data.delete(link)
      if (site?.control !== link) return
      site.control = undefined
      site.state = undefined
      if (site.last) site.last.lastSeenAt = clock.now()
      onChange(link.site)
    },
    update(link, state) {
      const site = sites.get(link.site)
      if (site?.control !== link) return false
      site.state = state
      const { version, host, vms } = state
      const certificateNotAfter = link.peer.certificate.notAfter
      site.last = { site: link.site, version, host, vms, lastSeenAt: clock.now(), certificateNotAfter }
      onChange(link.site)
      return true
    },
    online(site) {
      const found = sites.get(site)
      return found?.state ? found.control : undefined
    },
    known: site => sites.has(site),
    forget(name) {
      const site = sites.get(name)
      if (!site) throw new GodwitError('SITE_UNKNOWN', `no site '${name}'`)
      if (site.control || site.data.size > 0) throw new GodwitError('SITE_ONLINE', `site ${name} is connected`)
      sites.delete(name)
      onChange(name)
    },
    state: site => sites.get(site)?.state,
    memory: site => sites.get(site)?.last,
    async openTo(site, placing) {
      const found = sites.get(site)
      const control = found?.control
      if (!control) throw new GodwitError('SITE_OFFLINE', `site ${site} is not connected`)
      // The same rule as Link.openRelayStream at the node.
      return carrierOf(placing, control, [...found.data]).connection.openStream()
    },
    vms: () =>
      [...sites.values()].flatMap(({ state, last }) =>
        last ? (state ?? last).vms.map(vm => ({ ...vm, site: last.site, online: state !== undefined })) : [],
      ),
    views: () => [...sites].map(([name, site]) => viewOf(name, site)),
    view(name) {
      const site = sites.get(name)
      return site && viewOf(name, site)
    },
    links: () => [...sites.values()].flatMap(({ control, data }) => (control ? [control, ...data] : [...data])),
  }
}

function drop(link: NodeLink, why: string): void {
  link.rpc.close(new GodwitError('CONNECTION_LOST', why))
}

function viewOf(name: string, { control, data, state, last }: Site): SiteView {
  return {
    site: name,
    online: state !== undefined,
    transport: control?.connection.engine ?? null,
    dataConnections: data.size,
    rttMs: control?.connection.stats().rttMs ?? null,
    version: last?.version ?? null,
    since: control?.since ?? last?.lastSeenAt ?? 0,
    certificateNotAfter: control?.peer.certificate.notAfter ?? last?.certificateNotAfter ?? null,
    host: last?.host ?? null,
    vms: (state ?? last)?.vms.map(vm => vm.name) ?? [],
  }
}
