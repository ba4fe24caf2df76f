// What the fronts (MQTT, standards) may ask of the gateway, and no more: see, start, cancel, pin, listen.
import type { Clock } from '../../ops/clock.ts'
import type { MigrationRecord, MigrationRequest, PrestageRecord, PrestageRequest, SiteView, VmView } from '../../wire/admin.ts'
import type { Events } from './events.ts'
import type { Pins } from './pins.ts'

export type ControlHost = {
  readonly gatewayId: string
  readonly version: string
  /** Unix ms. */
  readonly startedAt: number
  readonly clock: Clock
  readonly events: Events
  readonly pins: Pins
  sites(): SiteView[]
  vms(): VmView[]
  /** Newest first. */
  migrations(): MigrationRecord[]
  /** Of a connected site: its process, its public signing key. */
  linkFacts(site: string): { incarnation: number; publicKey: Uint8Array; rttMs: number | undefined } | undefined
  /** Bytes relayed to and from a site since the gateway began. */
  traffic(site: string): { ingressBytes: number; egressBytes: number }
  /** Checked before the first await: what a caller has just looked at still holds. */
  start(request: MigrationRequest): Promise<string>
  cancel(migrationId: string): Promise<void>
  /** See prestages.ts. */
  prestage(request: PrestageRequest): Promise<PrestageRecord>
  prestages(): PrestageRecord[]
  cancelPrestage(handoffId: string): void
}
