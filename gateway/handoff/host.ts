// What the fronts (MQTT, standards) may ask of the gateway, and no more: see, start, cancel, pin, listen.
import type { Clock } from '../../ops/clock.ts'
import type { MigrationRecord, PrestageRecord, PrestageRequest, SiteView, VmView } from '../../wire/admin.ts'
import type { Events, HandoffView } from './events.ts'
import type { Home } from './home.ts'
import type { MoveRequest } from './migrations.ts'
import type { Pins } from './pins.ts'

export type FrontHost = {
  readonly gatewayId: string
  readonly version: string
  /** Unix ms. */
  readonly startedAt: number
  readonly clock: Clock
  readonly events: Events
  readonly pins: Pins
  sites(): SiteView[]
  /** Where a VM lives (homes.ts). */
  find(vm: string): Home
  /** Each VM once, where it lives. */
  vms(): VmView[]
  /** Newest first. */
  migrations(): MigrationRecord[]
  /** Of a connected site: its process, its public signing key. */
  linkFacts(site: string): { incarnation: number; publicKey: Uint8Array; rttMs: number | undefined } | undefined
  /** Bytes relayed to and from a site since the gateway began. */
  traffic(site: string): { ingressBytes: number; egressBytes: number }
  /** Checked before the first await: what a caller has just looked at still holds. */
  start(request: MoveRequest): Promise<string>
  /** See prestages.ts. */
  prestage(request: PrestageRequest): Promise<PrestageRecord>
  /** Those that are pre-staged, then those with a migration, the newest first. */
  handoffs(): HandoffView[]
  /** Ends a handoff, with or without a migration. */
  cancel(handoffId: string): Promise<void>
}
