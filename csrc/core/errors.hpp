#pragma once

#include <stdexcept>

namespace deploy {

// No assignment satisfies the budget; arrives in Python as pydeploy.errors.Infeasible.
class Infeasible : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace deploy
