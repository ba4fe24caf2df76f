// Which site a VM's name belongs to. Pure: what the gateway has on its disk, what sites claim, what is known of
// migrations in; a decision out.
// Always holds: a claim alone never takes a name from another site, whatever its epoch and whoever is connected. A name
// goes to another site by a concluded migration, by the word of the site that has it (handed over, moved, deleted), by
// the root's fencing statement, or by an operator.
import type { Fencing } from '../../crypto/fencing.ts'
import type { MigrationState, VmView } from '../../wire/admin.ts'
import type { MovedVm, Outcome, Plan } from '../../wire/control.ts'
import type { StoredHome } from '../store/records.ts'

/** A migration of the VM, and who has said that it was handed over. */
export type Moving = {
  plan: Plan
  state: MigrationState
  outcome: Outcome | null
  isDoubt: boolean
  bySource: boolean
  byTarget: boolean
  /** The source has ended it, and knows that it has handed nothing over. */
  isDenied: boolean
}

type Situation = {
  vm: string
  home: StoredHome | undefined
  /** Every site that lists the VM. */
  claims: readonly VmView[]
  moving: readonly Moving[]
  /** What the site that has the name says over its present link; undefined: it is not connected. */
  owner: { handovers: readonly Plan[]; moved: readonly MovedVm[] } | undefined
  /** Statements of the root about this VM that sites have sent; verified. */
  fencings: readonly Fencing[]
}

export type Binding = Pick<StoredHome, 'site' | 'epoch' | 'by'>
export type Alarm = { kind: 'vm_claim' | 'vm_contested' | 'epoch_jump'; vm: string; site: string; epoch: number; home: string | null }
type Decision = { home: Binding | undefined; alarms: Alarm[] }

/** One move adds 1, a VM taken back 2. */
const EPOCHS_AT_ONCE = 2

/** A VM that is there in its own right: no half of a transfer, no remains of one. */
const isSolid = ({ state }: VmView): boolean => state !== 'incoming' && state !== 'failed'
const isOpen = ({ outcome }: Moving): boolean => outcome === null

export function decideHome(situation: Situation): Decision {
  const { vm, home, claims } = situation
  const rivals = claims.filter(claim => claim.online && isSolid(claim) && claim.site !== home?.site)
  if (!home) return firstClaim(vm, rivals)
  const heir = rivals.find(claim => isHeir(claim, home, situation))
  if (heir) return { home: { site: heir.site, epoch: heir.epoch, by: reasonOf(heir, home, situation) }, alarms: [] }
  const own = claims.find(({ site }) => site === home.site)
  if (situation.owner && !own) return released(situation, home, rivals)
  const epoch = own && isSolid(own) ? own.epoch : home.epoch
  const jump: Alarm[] = epoch > home.epoch + EPOCHS_AT_ONCE ? [{ kind: 'epoch_jump', vm, site: home.site, epoch, home: home.site }] : []
  return {
    home: { ...home, epoch },
    alarms: [...jump, ...rivals.filter(claim => isAlarming(claim, home, situation)).map(claimAlarm(home.site))],
  }
}

/** Nobody has the name: the one site that claims it gets it; where several do, only an operator can tell. */
function firstClaim(vm: string, rivals: VmView[]): Decision {
  const [first, second] = rivals
  if (!first) return { home: undefined, alarms: [] }
  if (!second) return { home: { site: first.site, epoch: first.epoch, by: 'claim' }, alarms: [] }
  return { home: undefined, alarms: rivals.map(({ site, epoch }) => ({ kind: 'vm_contested', vm, site, epoch, home: null })) }
}

/** The site that has the name is connected and does not list the VM any more: it has moved, or is deleted. */
function released(situation: Situation, home: StoredHome, rivals: VmView[]): Decision {
  const { vm, moving, owner } = situation
  if (moving.some(one => isOpen(one) && one.plan.source === home.site)) return { home, alarms: [] }
  const moved = owner?.moved.find(one => one.vm === vm && one.epoch > home.epoch)
  if (moved) return { home: { site: moved.target, epoch: moved.epoch, by: 'owner' }, alarms: [] }
  const done = moving.find(({ plan, outcome }) => outcome === 'completed' && plan.source === home.site && plan.epoch >= home.epoch)
  if (done) return { home: { site: done.plan.target, epoch: done.plan.epoch + 1, by: 'migration' }, alarms: [] }
  return firstClaim(vm, rivals)
}

/**
 * A name that changes hands goes to a higher epoch, so two sites never pass it to and fro; but for one that was
 * never handed over.
 */
function isHeir(claim: VmView, home: StoredHome, { moving, owner, fencings }: Situation): boolean {
  if (claim.epoch <= home.epoch) return isNeverGiven(claim, home, moving)
  const isNext = ({ source, target, epoch }: Plan) => source === home.site && target === claim.site && claim.epoch === epoch + 1
  return (
    moving.some(one => isNext(one.plan) && one.plan.epoch >= home.epoch && isHandedOver(one, owner !== undefined)) ||
    moving.some(one => isGivenBack(one, claim, home)) ||
    owner?.handovers.some(isNext) === true ||
    owner?.moved.some(({ target, epoch }) => target === claim.site && epoch === claim.epoch && epoch > home.epoch) === true ||
    fencings.some(fencing => isFencedFor(fencing, claim, home))
  )
}

const reasonOf = (claim: VmView, home: StoredHome, { fencings, moving }: Situation): StoredHome['by'] => {
  if (fencings.some(fencing => isFencedFor(fencing, claim, home))) return 'fencing'
  return moving.some(({ plan }) => plan.target === claim.site || plan.source === claim.site) ? 'migration' : 'owner'
}

/** The source's word counts; the target's own only where the source cannot be asked. */
const isHandedOver = ({ outcome, state, bySource, byTarget }: Moving, isSourceConnected: boolean): boolean =>
  outcome === 'completed' || (state !== 'ABORTED' && (bySource || (byTarget && !isSourceConnected)))

/** The target that has the name by this very migration gave the VM back. */
const isGivenBack = ({ plan, state, isDoubt }: Moving, claim: VmView, home: StoredHome): boolean =>
  home.by === 'migration' &&
  state === 'ABORTED' &&
  !isDoubt &&
  plan.source === claim.site &&
  plan.target === home.site &&
  home.epoch === plan.epoch + 1 &&
  claim.epoch === plan.epoch + 2

/** The target had the name by its own word alone, while the source could not be asked; now the source denies it. */
function isNeverGiven(claim: VmView, home: StoredHome, moving: readonly Moving[]): boolean {
  const given = moving.filter(
    ({ plan }) => plan.source === claim.site && plan.target === home.site && plan.epoch === claim.epoch && plan.epoch < home.epoch,
  )
  return home.by === 'migration' && given.length > 0 && given.every(one => one.isDenied && !one.bySource && one.outcome !== 'completed')
}

const isFencedFor = (fencing: Fencing, claim: VmView, home: StoredHome): boolean =>
  fencing.site === home.site && fencing.for === claim.site && fencing.epoch >= home.epoch && claim.epoch === fencing.epoch + 1

/** Not the older copy at the other end of a hand-over that is under way, and not what is left of one. */
function isAlarming({ site, state, epoch }: VmView, home: StoredHome, { moving }: Situation): boolean {
  const isPart = moving.some(one => isOpen(one) && (one.plan.source === site || one.plan.target === site) && epoch <= one.plan.epoch + 1)
  if (isPart) return false
  return epoch > home.epoch || state === 'running' || state === 'migrating'
}

const claimAlarm =
  (home: string) =>
  ({ name, site, epoch }: VmView): Alarm => ({ kind: 'vm_claim', vm: name, site, epoch, home })
