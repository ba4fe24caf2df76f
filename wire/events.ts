// What GET /v1/events sends (docs/reference/protocol.md, Feed of events): shared by the gateway, the command line and
// the OpenAPI document.
// Always holds: each event names itself and its time, so that its data is complete without the stream around it; an
// event carries what has changed, never a secret. New kinds may come: a reader ignores those that it does not know.
import { MigrationRecord, MigrationState, PrestageRecord, SiteView, VmView } from './admin.ts'
import { Id, MigrationId, MigrationProgress } from './control.ts'
import { z } from './schema.ts'

/** A decision of the handoff policy to move a VM, or to pre-stage it. */
export const PolicyDecision = z.object({ vm: Id, action: z.enum(['move', 'prepare']), from: Id, to: Id, because: z.string() })
export type PolicyDecision = z.infer<typeof PolicyDecision>

/**
 * What looks like an attack, or needs an operator. `kind` as in the counter `godwit_gateway_alerts_total`, or stuck and
 * in_doubt.
 */
export const Alert = z.object({ kind: z.string(), vm: Id, site: Id.nullable(), migrationId: MigrationId.nullable(), message: z.string() })
export type Alert = z.infer<typeof Alert>

/** A VM's name belongs to another site than before; null: to none. */
export const HomeChange = z.object({ vm: Id, from: Id.nullable(), to: Id.nullable(), epoch: z.number().nullable() })
export type HomeChange = z.infer<typeof HomeChange>

/** A site asks for its first certificate: an operator compares the fingerprint and approves. */
export const EnrolmentAsked = z.object({ site: Id, fingerprint: z.string(), expiresAt: z.number() })
export type EnrolmentAsked = z.infer<typeof EnrolmentAsked>

/** A site without the names of its VMs: `vms` beside it has those that have changed. */
const SiteFacts = SiteView.omit({ vms: true })

/** Unix ms. */
const at = z.number()
const kind = <N extends string, S extends z.ZodRawShape>(name: N, shape: S) => z.object({ event: z.literal(name), at, ...shape })

export const FeedEvent = z.discriminatedUnion('event', [
  /**
   * Read the state anew (GET /v1/status): the stream begins here (`start`), or events are missing before it (`lost`).
   */
  kind('reset', { why: z.enum(['start', 'lost']) }),
  /** `vms`: all VMs of the site. */
  kind('site-connected', { site: SiteFacts, vms: z.array(VmView) }),
  kind('site-left', { site: Id }),
  /** `vms`: those that are new or have changed; `gone`: those that the site does not list any more. */
  kind('site-state', { site: SiteFacts, vms: z.array(VmView), gone: z.array(Id) }),
  /** An operator has removed it. */
  kind('site-forgotten', { site: Id }),
  kind('vm-home', HomeChange.shape),
  kind('vm-pin', { vm: Id, pinned: z.boolean() }),
  kind('migration-begun', { migration: MigrationRecord }),
  kind('migration-state', { migration: MigrationRecord }),
  /** At most one a second for each migration. */
  kind('migration-progress', {
    migrationId: MigrationId,
    vm: Id,
    source: Id,
    target: Id,
    state: MigrationState,
    progress: MigrationProgress,
  }),
  kind('migration-ended', { migration: MigrationRecord }),
  kind('prestage-begun', { prestage: PrestageRecord }),
  kind('prestage-ended', { prestage: PrestageRecord }),
  kind('policy-decision', PolicyDecision.shape),
  kind('alert', Alert.shape),
  kind('enrolment-request', EnrolmentAsked.shape),
])
export type FeedEvent = z.infer<typeof FeedEvent>

/** `BOOT-NUMBER`: the gateway's process, and the event's place in it. A client only keeps it. */
export const EventId = z.string().regex(/^[0-9a-f]{8}-[0-9]{1,15}$/, 'expected the id of an event')
