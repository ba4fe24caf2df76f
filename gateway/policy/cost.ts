// What a migration will take, as the policy reckons it: the formula is ops/cost.ts, which `godwit plan` uses too. Pure.
export { type CostInputs, type CostLimits, freshBytes, type MigrationCost, migrationCost } from '../../ops/cost.ts'
