"""Adam in few operations: one per variable, and none that the host must decide about.

Keras' Adam takes about 20 operations per variable, which on a GPU are 20 launches for a vector of
16 numbers. Its dynamic loss scale lets the host read whether all gradients are finite before the
update may begin. Here TensorFlow's fused operation updates a variable and its two averages at once,
and a step that is skipped is one whose update changes nothing. Variables, their order and their
values are those of Keras' optimizers, so checkpoints are interchangeable.

The numbers are Keras' within rounding. The fused operation computes 1 - beta in float32, where
Keras rounds the exact difference; for beta_2 these differ by a factor of 1.3e-5.
"""

import keras
import tensorflow as tf


def build_optimizer(learning_rate, policy):
    """Returns Adam; under mixed_float16, inside an optimizer that scales the loss dynamically.

    Source: the authors train with Adam. Its other settings are Keras' defaults.
    """
    optimizer = FusedAdam(learning_rate)
    return FusedLossScale(optimizer) if policy == "mixed_float16" else optimizer


@keras.saving.register_keras_serializable("keras_nowcast")
class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam, without weight decay, clipping and averages of the weights."""

    def apply(self, grads, trainable_variables=None, wanted=None):
        """Updates the variables once.

        Args:
          grads: gradients, one per variable; None for a variable that stays as it is.
          trainable_variables: the Keras variables; None for those the optimizer was built for.
          wanted: bool tensor, False to leave everything as it is; the gradients must then be
            finite. None for True.
        """
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            self.build(variables)
        step = tf.cast(self.iterations + 1, tf.float32)
        rate = tf.cast(self._get_current_learning_rate(), tf.float32)
        betas = [tf.constant(each, tf.float32) for each in (self.beta_1, self.beta_2)]
        powers = [tf.pow(beta, step) for beta in betas]
        if wanted is not None:
            # m += (g - m) * 0, v += (g**2 - v) * 0, and the variable loses m * 0.
            rate = tf.where(wanted, rate, 0.0)
            betas = [tf.where(wanted, beta, 1.0) for beta in betas]
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is None:
                continue
            index = self._get_variable_index(variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.value.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=rate,
                beta1=betas[0],
                beta2=betas[1],
                epsilon=self.epsilon,
                grad=gradient,
            )
        done = 1 if wanted is None else tf.cast(wanted, self.iterations.dtype)
        self._iterations.assign_add(done)


@keras.saving.register_keras_serializable("keras_nowcast")
class FusedLossScale(keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scale around a FusedAdam, decided on the device.

    If a gradient is not finite, the step is skipped and the scale is halved. After
    `dynamic_growth_steps` steps without such a gradient, the scale is doubled.
    """

    def apply(self, grads, trainable_variables=None):
        """Updates the variables once, or leaves them and halves the scale."""
        if not self.built:
            self.build(trainable_variables)
        finite = all_finite(grads)
        scale, steps = self.dynamic_scale.value, self.step_counter.value
        # Divided by 0, any gradient is 0; also one that is not finite.
        divisor = tf.where(finite, scale, 0.0)
        unscaled = [g if g is None else tf.math.divide_no_nan(g, divisor) for g in grads]
        self.inner_optimizer.apply(unscaled, trainable_variables, wanted=finite)
        grows = tf.equal(steps, self.dynamic_growth_steps - 1)
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self.step_counter.assign(tf.where(finite & ~grows, steps + 1, tf.zeros_like(steps)))
        self.dynamic_scale.assign(scale * factor)


def all_finite(gradients):
    """Returns a bool tensor: whether every number of every gradient is finite."""
    flat = [tf.reshape(each, [-1]) for each in gradients if each is not None]
    return tf.reduce_all(tf.math.is_finite(tf.concat(flat, axis=0)))
